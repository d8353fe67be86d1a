//! What pictures of this program have in common: a title, and colours that the colour-blind read and printers too.

/// Nine steps of viridis, dark to bright.
pub(crate) const VIRIDIS: [&str; 9] =
    ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];

/// The beginning of a picture on white, with its title at `left` of the first line. `</svg>` ends it.
pub(crate) fn begin([width, height]: [usize; 2], left: usize, title: &str) -> String {
    let title = escaped(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<title>{title}</title>\n<rect width=\"{width}\" height=\"{height}\" \
         fill=\"#ffffff\"/>\n<text x=\"{left}\" y=\"22\">{title}</text>\n"
    )
}

/// Text as XML may hold it.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            // No character to XML; names of folders may hold them.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_a_picture_is_no_markup() {
        assert_eq!(escaped("a < b & \"c\"</title>\u{1}\u{ffff}"), "a &lt; b &amp; \"c\"&lt;/title&gt;\u{fffd}\u{fffd}");
    }
}
