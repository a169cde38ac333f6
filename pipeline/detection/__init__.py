"""From vectors to boxes: labels, mining, SVMs, scores, box regression, suppression."""
