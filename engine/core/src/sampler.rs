//! One token out of logits.
