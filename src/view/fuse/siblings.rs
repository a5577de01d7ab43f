//! What stands beside a file in its directory.

use std::ops::Range;

use super::table::{Body, Id, Table};
use crate::object::Object;

/// A file's place among the entries of its directory, in the order of their names.
#[derive(Debug, Clone, Copy)]
pub struct Siblings<'a> {
    table: &'a Table,
    directory: Id,
    first: u32,
    count: u32,
    position: u32,
}

impl<'a> Siblings<'a> {
    pub(super) fn of(table: &'a Table, file: Id) -> Option<Self> {
        let directory = table.rows[file.index()].parent;
        let Body::Directory { first, count, .. } = table.rows[directory.index()].body else {
            return None;
        };
        let position = file.0.checked_sub(first.0)?;
        Some(Self { table, directory, first: first.0, count, position })
    }

    /// The number of the directory.
    pub fn directory(&self) -> u64 {
        self.table.rows[self.directory.index()].number
    }

    /// Where in it the file stands, counted from 0.
    pub fn position(&self) -> u32 {
        self.position
    }

    /// The files at these places; directories are left out, and what is behind the last entry.
    pub fn at(&self, places: Range<u32>) -> Vec<Object> {
        let end = places.end.min(self.count);
        (places.start..end).filter_map(|place| self.table.object(Id(self.first + place))).collect()
    }
}
