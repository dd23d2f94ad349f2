"""The types of what Secateur writes as JSON, by document; docs/schema/*.json is made from them."""
