//! Escapes text from untrusted sources.

use std::borrow::Cow;

/// Escapes control characters, direction marks and zero-width characters as `\u{1b}`, so that the
/// text can neither control a terminal nor hide anything.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_harmful(c) {
            true => clean.extend(c.escape_unicode()),
            false => clean.push(c),
        }
    }
    Cow::Owned(clean)
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// `1.2 GB`
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < units.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// Escapes for HTML text and quoted attributes.
pub(super) fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in clean(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Escapes for a SARIF message, in which `[text](target)` is a link (section 3.11.6) and `{0}` a
/// placeholder (section 3.11.5).
pub(super) fn sarif(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in clean(text).chars() {
        match c {
            '[' | ']' | '\\' => escaped.extend(['\\', c]),
            '{' | '}' => escaped.extend([c, c]),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Breaks a text into lines of at most `width` characters. Longer words are broken too.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ').flat_map(|word| pieces(word, width)) {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += length;
        }
    }
    lines
}

/// Splits a word into pieces of at most `width` characters.
fn pieces(word: &str, width: usize) -> impl Iterator<Item = &str> {
    let mut left = Some(word);
    std::iter::from_fn(move || {
        let word = left?;
        let end = word.char_indices().nth(width.max(1)).map(|(at, _)| at);
        left = end.map(|end| &word[end..]);
        Some(&word[..end.unwrap_or(word.len())])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_and_html_control_sequences_are_escaped() {
        assert_eq!(clean("CN=Müller, 例え"), "CN=Müller, 例え");
        assert_eq!(clean("a\u{1b}[2J\u{9b}b\r\n\u{7f}"), r"a\u{1b}[2J\u{9b}b\u{d}\u{a}\u{7f}");
        assert_eq!(clean("a\u{202e}b\u{200b}"), r"a\u{202e}b\u{200b}");
        assert_eq!(html("<a href='\">&"), "&lt;a href=&#39;&quot;&gt;&amp;");
        assert_eq!(sarif(r"[x](y) \ {0}"), r"\[x\](y) \\ {{0}}");
        assert_eq!(wrap("aa bb cccccc d", 5), ["aa bb", "ccccc", "c d"]);
        assert_eq!(wrap("éééé é", 3), ["ééé", "é é"]);
        assert_eq!(wrap("a  b", 9), ["a  b"]);
    }
}
