"""A simulated accelerator: how device handling is tested where there is no GPU."""
