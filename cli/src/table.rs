//! Rows → a table whose columns are aligned.

use comfy_table::{Cell, CellAlignment, ColumnConstraint, ContentArrangement, Row, Table};

/// Formats rows: every column but the last is one of figures. `width`: no line is longer, and what does not fit of the last column
/// is cut.
pub fn format(head: &[&str], rows: &[Vec<String>], width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_truncation_indicator("…");
    let last = head.len() - 1;
    let cells = |texts: &mut dyn Iterator<Item = String>| {
        let mut row = Row::new();
        for (at, text) in texts.enumerate() {
            let side = if at == last { CellAlignment::Left } else { CellAlignment::Right };
            row.add_cell(Cell::new(text).set_alignment(side));
        }
        row.max_height(1);
        row
    };
    table.set_header(cells(&mut head.iter().map(|text| (*text).to_owned())));
    for row in rows {
        // Words are not wrapped: the column ends where the line does.
        table.add_row(cells(&mut row.iter().map(|text| text.replace(' ', "\u{a0}"))));
    }
    match width {
        Some(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
            for column in table.column_iter_mut().take(last) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        None => {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if at == last { 0 } else { 2 }));
    }
    let lines = table.lines().map(|line| line.replace('\u{a0}', " "));
    lines.map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_to_the_right_and_a_long_name_is_cut() {
        let rows =
            [["1.00 MiB", "7", "src/a.rs:1 app::first"], ["5 B", "1,234", "src/b.rs:22 app::second::third"]];
        let rows: Vec<Vec<String>> = rows.iter().map(|row| row.map(String::from).to_vec()).collect();
        let head = ["LIVE", "BLOCKS", "SITE"];
        assert_eq!(
            format(&head, &rows, None),
            "    LIVE  BLOCKS  SITE\n1.00 MiB       7  src/a.rs:1 app::first\n     5 B   1,234  src/b.rs:22 app::second::third\n"
        );
        let narrow = format(&head, &rows, Some(40));
        assert!(narrow.lines().all(|line| line.chars().count() <= 40), "{narrow}");
        assert!(
            narrow.contains("src/a.rs:1 app::first") && narrow.contains("src/b.rs:22 app::s"),
            "{narrow}"
        );
        assert_eq!(narrow.lines().count(), 3);
    }
}
