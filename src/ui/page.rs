//! Text for people, of lines and paragraphs.

use textwrap::{Options, WordSplitter};

use super::table;
use crate::visible::visible;

/// The width of a page, in columns.
pub const WIDTH: usize = 80;

/// Text that can be printed on a terminal. Each method adds whole lines, and shows hidden
/// characters of its text as escapes. So no text that somebody else wrote can move the cursor, or
/// begin a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page(String);

impl Page {
    /// An empty page.
    pub fn new() -> Page {
        Page::default()
    }

    /// The text, whose lines all end with a newline. Nothing in it needs to be escaped.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether the page has no lines.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a line.
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.0.push_str(&visible(text.as_ref()));
        self.0.push('\n');
    }

    /// Adds a line for each of `lines`.
    pub fn lines<T: AsRef<str>>(&mut self, lines: impl IntoIterator<Item = T>) {
        lines.into_iter().for_each(|line| self.line(line));
    }

    /// Adds an empty line.
    pub fn blank(&mut self) {
        self.0.push('\n');
    }

    /// Adds a paragraph, wrapped at 80 columns. A word that is longer than a line is not broken, so
    /// that it can be copied. `first` begins the first line, `next` the others.
    pub fn wrapped(&mut self, text: &str, first: &str, next: &str) {
        self.folded(text, WIDTH, first, next);
    }

    /// As [`Self::wrapped`], but at `width` columns.
    pub fn folded(&mut self, text: &str, width: usize, first: &str, next: &str) {
        let (text, first, next) = (visible(text), visible(first), visible(next));
        let options = Options::new(width)
            .initial_indent(&first)
            .subsequent_indent(&next)
            .break_words(false)
            .word_splitter(WordSplitter::NoHyphenation);
        self.0.push_str(&textwrap::fill(&text, options));
        self.0.push('\n');
    }

    /// Adds a paragraph with a label in front: `  evidence  …`.
    pub fn indented(&mut self, label: &str, text: &str) {
        self.wrapped(text, &format!("  {label:<9} "), &" ".repeat(12));
    }

    /// Adds rows whose cells are aligned in columns.
    pub fn columns(&mut self, rows: &[Vec<String>]) {
        self.lines(table::columns(rows));
    }

    /// Adds all lines of another page.
    pub fn page(&mut self, other: &Page) {
        self.0.push_str(&other.0);
    }
}

/// A page of one line.
impl<T: AsRef<str>> From<T> for Page {
    fn from(line: T) -> Page {
        let mut page = Page::new();
        page.line(line);
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_begins_lines() {
        let mut page = Page::from("one\ntwo");
        page.blank();
        page.lines(["a\u{1b}[2K", "b\r"]);
        page.indented("evidence", "x\n  remedy    rm -rf /");
        page.columns(&[
            vec!["1\n2".into(), "3\t4".into()],
            vec!["longer".into(), "\u{202e}".into(), "end".into()],
        ]);
        assert_eq!(
            page.text(),
            "one\\ntwo\n\na\\u{1b}[2K\nb\\u{d}\n  evidence  x\\n  remedy    rm -rf /\n\
             1\\n2    3\\t4\nlonger  \\u{202e}  end\n"
        );
    }

    #[test]
    fn a_paragraph_is_wrapped_as_it_is_shown() {
        let mut page = Page::new();
        page.folded("\u{9b}\u{9b} b c", 15, "", "  ");
        assert_eq!(page.text(), "\\u{9b}\\u{9b} b\n  c\n");
    }
}
