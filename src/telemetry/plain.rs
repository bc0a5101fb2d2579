//! Makes untrusted text safe for a terminal: keys, the command's output, answers of servers.

use std::fmt::{self, Write};

use unicode_truncate::UnicodeTruncateStr;

/// Escapes the characters that would move the cursor, colour the screen or change the direction of
/// writing, as in `\u{1b}`; tabs stay.
pub struct Plain<'a>(pub &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if (c.is_control() && c != '\t') || changes_direction(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// The same for a text of several lines; keeps the line breaks.
pub struct PlainLines<'a>(pub &'a str);

impl fmt::Display for PlainLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, line) in self.0.split('\n').enumerate() {
            if number > 0 {
                f.write_char('\n')?;
            }
            Plain(line).fmt(f)?;
        }
        Ok(())
    }
}

/// Shortens a text to a number of terminal columns by removing its middle: the ends of a file name
/// matter most.
pub fn shortened(text: &str, columns: usize) -> String {
    if text.unicode_truncate(columns).0 == text {
        return text.to_owned();
    }
    let rest = columns.saturating_sub(1);
    let (beginning, _) = text.unicode_truncate(rest / 2);
    let (end, _) = text.unicode_truncate_start(rest - rest / 2);
    format!("{beginning}…{end}")
}

/// Whether a character changes the direction of writing or the line: marks, embeddings, overrides,
/// isolates (Unicode's Bidi_Control) and separators.
fn changes_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_loses_its_middle() {
        for (text, columns, shown) in [
            ("", 3, ""),
            ("abc", 3, "abc"),
            ("abcdef.csv", 8, "abc….csv"),
            ("\u{65e5}\u{672c}\u{65e5}\u{672c}", 6, "\u{65e5}…\u{672c}"),
            ("abc", 1, "…"),
            ("abc", 0, "…"),
        ] {
            assert_eq!(shortened(text, columns), shown);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let shown =
            Plain("\u{1b}[2J a\r\nb\tc\u{7f} \u{9b}1m \u{202e}txt\u{2066} \u{2028} Zürich \u{65e5}\u{672c} e\u{301}")
                .to_string();
        let plain = r"\u{1b}[2J a\r\nb	c\u{7f} \u{9b}1m \u{202e}txt\u{2066} \u{2028} Zürich ";
        assert_eq!(shown, format!("{plain}\u{65e5}\u{672c} e\u{301}"));
        assert_eq!(PlainLines("\u{1b}[2J\n\n a\r\n").to_string(), "\\u{1b}[2J\n\n a\\r\n");
    }
}
