"""How alike two texts are (φ of Eq. 3): `score` weighs chunks by it, and `audit` decides by it when to stop asking."""
