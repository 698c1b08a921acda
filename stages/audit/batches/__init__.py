"""The providers' batch APIs, one file each: half the price, answers within a day."""
