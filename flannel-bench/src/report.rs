//! What a benchmark found: tables for people, JSON for programs.

use std::{fmt, fs, io::Write as _, path::Path};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::{
    stats::{ratios, summary},
    unit::Unit,
};

/// Everything that one benchmark found.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) benchmark: &'static str,
    /// What was asked for.
    pub(crate) command: Vec<String>,
    /// What the figures are to be read with.
    pub(crate) machine: Value,
    pub(crate) tables: Vec<Table>,
}

/// Rows of things that were compared, columns of what was measured; each cell has one sample for each run.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    columns: Vec<Column>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Column {
    name: String,
    unit: Unit,
}

#[derive(Debug)]
struct Row {
    name: String,
    cells: Vec<Vec<f64>>,
    troubles: Vec<String>,
}

impl Report {
    /// Writes the JSON to a file, or to standard output if it is called `-`.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.json()).context("cannot print JSON")? + "\n";
        let written = match path.to_str() {
            Some("-") => std::io::stdout().write_all(text.as_bytes()),
            _ => fs::write(path, text),
        };
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    fn json(&self) -> Value {
        json!({
            "benchmark": self.benchmark,
            "command": self.command,
            "machine": self.machine,
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "flannel-bench {}", self.command.join(" "))?;
        writeln!(f, "machine {}", self.machine)?;
        self.tables.iter().try_for_each(|table| write!(f, "\n{table}"))
    }
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &[(&str, Unit)]) -> Self {
        let column = |(name, unit): &(&str, Unit)| Column { name: (*name).into(), unit: *unit };
        let columns = columns.iter().map(column).collect();
        Self { title: title.into(), columns, rows: Vec::new() }
    }

    /// Adds a sample. Rows come in the order in which they are first named.
    pub(crate) fn add(&mut self, row: &str, column: &str, sample: f64) {
        let column = self.column(column);
        self.row(row).cells[column].push(sample);
    }

    /// Notes that a run of `row` did not give what it should have.
    pub(crate) fn trouble(&mut self, row: &str, text: impl Into<String>) {
        self.row(row).troubles.push(text.into());
    }

    /// Adds a column: `of` in each row, against the sum of `of` in the rows `reference`, run by run.
    pub(crate) fn compare(&mut self, name: &str, of: &str, reference: &[&str]) {
        let of = self.column(of);
        let references = self.rows.iter().filter(|row| reference.contains(&row.name.as_str()));
        let references: Vec<_> = references.map(|row| row.cells[of].clone()).collect();
        let runs = references.iter().map(Vec::len).min().unwrap_or(0);
        let complete = references.len() == reference.len();
        let sums: Vec<f64> = (0..if complete { runs } else { 0 })
            .map(|run| references.iter().map(|samples| samples[run]).sum())
            .collect();
        self.columns.push(Column { name: name.into(), unit: Unit::Ratio });
        for row in &mut self.rows {
            let ratios = ratios(&row.cells[of], &sums);
            row.cells.push(ratios);
        }
    }

    fn column(&self, name: &str) -> usize {
        let found = self.columns.iter().position(|column| column.name == name);
        found.expect("a sample belongs to a column of its table")
    }

    fn row(&mut self, name: &str) -> &mut Row {
        let index = self.rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
            let cells = vec![Vec::new(); self.columns.len()];
            self.rows.push(Row { name: name.into(), cells, troubles: Vec::new() });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(&row.cells).filter_map(|(column, samples)| {
                let found = summary(samples)?;
                let cell = json!({
                    "unit": column.unit.name(),
                    "median": found.median,
                    "min": found.min,
                    "max": found.max,
                    "samples": samples,
                });
                Some((column.name.clone(), cell))
            });
            json!({
                "name": row.name,
                "cells": cells.collect::<Map<_, _>>(),
                "troubles": row.troubles,
            })
        });
        json!({ "title": self.title, "rows": rows.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Table {
    /// A table that is aligned, and Markdown at the same time.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used: Vec<usize> = (0..self.columns.len())
            .filter(|column| self.rows.iter().any(|row| !row.cells[*column].is_empty()))
            .collect();
        let mut lines: Vec<Vec<String>> = Vec::new();
        let head = used.iter().map(|column| self.columns[*column].name.clone());
        lines.push([self.title.clone()].into_iter().chain(head).collect());
        for row in &self.rows {
            let cells =
                used.iter().map(|column| cell(self.columns[*column].unit, &row.cells[*column]));
            lines.push([row.name.clone()].into_iter().chain(cells).collect());
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<usize> =
            (0..=used.len()).map(|column| width(column).unwrap_or(0)).collect();
        for (number, line) in lines.iter().enumerate() {
            for (text, width) in line.iter().zip(&widths) {
                write!(f, "| {text:width$} ")?;
            }
            writeln!(f, "|")?;
            if number == 0 {
                for width in &widths {
                    write!(f, "| {} ", "-".repeat(*width))?;
                }
                writeln!(f, "|")?;
            }
        }
        for row in &self.rows {
            for trouble in &row.troubles {
                writeln!(f, "! {}: {trouble}", row.name)?;
            }
        }
        Ok(())
    }
}

fn cell(unit: Unit, samples: &[f64]) -> String {
    match summary(samples) {
        None => "-".into(),
        Some(found) if samples.len() == 1 || found.min == found.max => unit.show(found.median),
        Some(found) => {
            format!(
                "{} ({} to {})",
                unit.show(found.median),
                unit.show(found.min),
                unit.show(found.max)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("N = 2", &[("time", Unit::Seconds), ("lost", Unit::Count)]);
        for (node, floor, read) in [(0.4, 0.1, 0.1), (0.2, 0.1, 0.3)] {
            table.add("node", "time", node);
            table.add("floor", "time", floor);
            table.add("read", "time", read);
        }
        table
    }

    #[test]
    fn a_table_is_aligned_and_leaves_out_what_nobody_measured() {
        let mut table = table();
        table.trouble("read", "was slow");
        let text = "\
| N = 2 | time                     |
| ----- | ------------------------ |
| node  | 300 ms (200 ms to 400 ms) |
| floor | 100 ms                    |
| read  | 200 ms (100 ms to 300 ms) |
! read: was slow
";
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&table.to_string().replace('-', "")), squeeze(&text.replace('-', "")));
        let widths: Vec<_> = table.to_string().lines().take(5).map(|l| l.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}");
    }

    #[test]
    fn a_comparison_is_made_run_by_run() {
        let mut table = table();
        table.compare("against both", "time", &["floor", "read"]);
        assert_eq!(table.rows[0].cells[2], [2.0, 0.5]);
        table.compare("against nobody", "time", &["floor", "who"]);
        assert_eq!(table.rows[0].cells[3], [0.0; 0]);
    }

    #[test]
    fn the_json_has_every_sample() {
        let json = table().json();
        let time = &json["rows"][0]["cells"]["time"];
        assert_eq!(time["samples"], json!([0.4, 0.2]));
        assert_eq!(
            (&time["min"], &time["max"], &time["unit"]),
            (&json!(0.2), &json!(0.4), &json!("s"))
        );
        assert!(json["rows"][0]["cells"].get("lost").is_none());
    }
}
