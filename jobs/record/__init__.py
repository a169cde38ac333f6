"""What every command that makes something writes down of itself and of what it made."""
