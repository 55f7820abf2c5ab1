"""The nouns: records that every floor above shares, frozen once made."""
