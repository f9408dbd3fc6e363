//! Floor 5: text becomes meaning. Nobody below has heard of YAML.
