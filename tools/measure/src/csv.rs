//! Just enough of CSV (RFC 4180): fields with commas, quotes or line breaks are quoted.

/// One line, with its line break.
pub(crate) fn line<'a>(fields: impl IntoIterator<Item = &'a str>) -> String {
    let quoted = |field: &str| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    };
    fields.into_iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

/// The lines of a file, each as its fields.
///
/// # Errors
/// Says in which line a quote has no end, or stands where none may.
pub(crate) fn parse(text: &str) -> Result<Vec<Vec<String>>, String> {
    let mut lines = vec![];
    let (mut fields, mut field) = (vec![], String::new());
    let mut characters = text.chars().peekable();
    let mut number = 1;
    while let Some(character) = characters.next() {
        match character {
            '"' if field.is_empty() => loop {
                match characters.next() {
                    Some('"') if characters.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') if matches!(characters.peek(), None | Some(',' | '\n' | '\r')) => break,
                    Some('"') => return Err(format!("line {number}: text after a closing quote")),
                    Some(other) => {
                        number += usize::from(other == '\n');
                        field.push(other);
                    }
                    None => return Err(format!("line {number}: a quote without its end")),
                }
            },
            '"' => return Err(format!("line {number}: a quote in a field that does not begin with one")),
            ',' => fields.push(std::mem::take(&mut field)),
            '\r' if characters.peek() == Some(&'\n') => {}
            '\n' => {
                number += 1;
                fields.push(std::mem::take(&mut field));
                lines.push(std::mem::take(&mut fields));
            }
            other => field.push(other),
        }
    }
    if !field.is_empty() || !fields.is_empty() {
        fields.push(field);
        lines.push(fields);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again() {
        let fields = ["plain", "", "with, comma", "a \"word\"", "two\nlines", "é"];
        assert_eq!(parse(&(line(fields) + &line(["next"]))).unwrap(), [&fields[..], &["next"]]);
        assert_eq!(line(["a", "b, c"]), "a,\"b, c\"\n");
        assert_eq!(parse("a,b\r\nc,").unwrap(), [["a", "b"], ["c", ""]]);
        assert_eq!(parse("").unwrap(), Vec::<Vec<String>>::new());
    }

    #[test]
    fn quotes_that_go_wrong_are_refused_with_their_line() {
        for (text, why) in [("a\n\"b", "line 2"), ("a\"b", "line 1"), ("\"a\"b", "line 1")] {
            assert!(parse(text).unwrap_err().contains(why), "{text}");
        }
    }
}
