"""What medclr does, one module per command."""
