//! Formats tables and numbers for people.

use console::measure_text_width;

use crate::visible::visible;

/// The lines of a table: the cells of the rows are aligned in columns, two blanks apart. The last
/// column is not padded.
pub(super) fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let shown = |row: &Vec<String>| row.iter().map(|cell| visible(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(shown).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| {
        rows.iter().filter_map(|r| r.get(i)).map(|c| measure_text_width(c)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut lines = Vec::new();
    for row in &rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if i + 1 < row.len() {
                let pad = widths[i] - measure_text_width(cell) + 2;
                line.extend(std::iter::repeat_n(' ', pad));
            }
        }
        line.truncate(line.trim_end().len());
        lines.push(line);
    }
    lines
}

/// Formats a number with thousands separators: `115,000`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

/// Formats a number with its noun, in the plural if needed: `1 object`, `1,234 objects`.
pub fn counted(n: usize, what: &str) -> String {
    format!("{} {what}{}", thousands(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_grouped() {
        let rows =
            [vec!["a".into(), "bb".into(), "c".into()], vec!["aaa".into(), "b".into(), "d".into()]];
        assert_eq!(columns(&rows), ["a    bb  c", "aaa  b   d"]);
        assert_eq!(thousands(115_000), "115,000");
        assert_eq!(thousands(999), "999");
    }
}
