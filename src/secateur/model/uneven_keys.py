"""The keys of config.json that a checkpoint of uneven widths has beside those of its class."""

UNEVEN_KEYS = (
    "per_layer_config",
    "allow_global_per_layer_attribute_access",
    "secateur_narrow",
    "secateur_skip",
    "secateur_widths",
    "auto_map",
)
