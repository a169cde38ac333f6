"""The method of SPP-net: arrays in, arrays out. Knows neither Ray nor the layout of files."""
