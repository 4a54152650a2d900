//! Prose in 80 columns.

use textwrap::Options;

/// The width of a page.
pub const WIDTH: usize = 80;

/// Wraps `text` at 80 columns. A longer word is not broken, so that it can be copied.
pub fn wrapped(text: &str, first: &str, next: &str) -> String {
    folded(text, WIDTH, first, next)
}

/// As [`wrapped`], at `width` columns.
pub fn folded(text: &str, width: usize, first: &str, next: &str) -> String {
    let options = Options::new(width)
        .initial_indent(first)
        .subsequent_indent(next)
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation);
    let mut text = textwrap::fill(text, options);
    text.push('\n');
    text
}

/// A labelled paragraph: `  evidence  …`.
pub fn indented(label: &str, text: &str) -> String {
    wrapped(text, &format!("  {label:<9} "), &" ".repeat(12))
}
