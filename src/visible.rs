//! Shows characters that a terminal would obey, or that no reader would see, as escapes.
//!
//! Much of what is printed was written by others: comments of rules, arguments of processes, names
//! in a snapshot, answers of a server. Their characters must neither move the cursor nor look like
//! a line of ours.

use std::borrow::Cow;

/// Whether `c` may change what a reader sees of the text around it: a control character, a line or
/// paragraph separator, a mark of writing direction, or a character without width.
pub fn is_hidden(c: char) -> bool {
    // `is_control` is C0, DEL and C1.
    c.is_control()
        || matches!(c,
            '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// `text` on one line: each hidden character, even a newline or a tab, becomes an escape such as
/// `\u{1b}`, and a newline becomes `\n`.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            c if is_hidden(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        for (given, shown) in [
            ("\u{1b}]0;PWN\u{7}", r"\u{1b}]0;PWN\u{7}"),
            ("\u{1b}[31mred", r"\u{1b}[31mred"),
            ("a\nb\tc\rd\u{8}", r"a\nb\tc\u{d}d\u{8}"),
            ("\0\u{7f}", r"\u{0}\u{7f}"),
            ("\u{80}\u{9b}2J\u{9d}\u{9f}", r"\u{80}\u{9b}2J\u{9d}\u{9f}"),
            ("\u{202a}\u{202e}\u{2066}\u{2069}", r"\u{202a}\u{202e}\u{2066}\u{2069}"),
            ("\u{200e}\u{200f}\u{61c}", r"\u{200e}\u{200f}\u{61c}"),
            ("\u{2028}\u{2029}\u{85}", r"\u{2028}\u{2029}\u{85}"),
            ("\u{200b}\u{200d}\u{feff}\u{ad}\u{2060}", r"\u{200b}\u{200d}\u{feff}\u{ad}\u{2060}"),
            ("\u{e0041}\u{e007f}\u{3164}", r"\u{e0041}\u{e007f}\u{3164}"),
        ] {
            assert_eq!(visible(given), shown);
        }
        let hidden: Vec<char> = ('\0'..='\u{9f}').filter(|c| is_hidden(*c)).collect();
        assert_eq!(hidden.len(), 32 + 1 + 32);
    }

    #[test]
    fn what_a_reader_sees_stays() {
        let text = "-A KUBE-SVC -m comment --comment \"süß, 日本, Ελλάδα, привет, שלום, 🦀 … ✓\"";
        assert!(matches!(visible(text), Cow::Borrowed(same) if same == text));
    }
}
