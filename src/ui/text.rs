//! Wraps prose for people, at 80 columns unless told otherwise.

use textwrap::Options;

/// The width of a page, in columns.
pub const WIDTH: usize = 80;

/// Wraps `text` at 80 columns. A word that is longer than a line is not broken, so that it can be
/// copied. `first` begins the first line, `next` the others.
pub fn wrapped(text: &str, first: &str, next: &str) -> String {
    folded(text, WIDTH, first, next)
}

/// As [`wrapped`], but at `width` columns.
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

/// Wraps a paragraph with a label in front: `  evidence  …`.
pub fn indented(label: &str, text: &str) -> String {
    wrapped(text, &format!("  {label:<9} "), &" ".repeat(12))
}
