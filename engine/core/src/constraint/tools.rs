//! Calls of tools, forced.

/// Which tools must be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolChoice<'a> {
    /// Any of them.
    Required,
    /// This one.
    Named(&'a str),
}
