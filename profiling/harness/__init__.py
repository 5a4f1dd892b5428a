"""What the measuring programs share: contenders, what they train, how one is measured, and the conditions."""
