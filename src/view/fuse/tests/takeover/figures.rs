//! What going on costs, with a million files. Run it by hand, and optimised:
//! `cargo test --release --lib -- --ignored --nocapture takeover::figures`.

use std::{fs, path::PathBuf, sync::Arc, time::Instant};

use super::super::{
    super::{
        LedgerPlace,
        backing::Numbers,
        journal::{Journal, Noted},
        ledger::Ledger,
        notice::Untold,
        table::Table,
    },
    OWNERSHIP, at, object,
};
use crate::{listing::ListingBuilder, relpath::RelPath};

const FILES: u64 = 1_000_000;

#[test]
#[ignore = "figures, not a claim"]
fn what_a_million_files_cost() {
    let directory = tempfile::tempdir().unwrap();
    let mut builder = ListingBuilder::new(FILES);
    for n in 0..FILES {
        let path = format!("part-{:03}/file-{n:07}.parquet", n % 1000);
        let object = object(&path, &format!("{n:032x}-12"), n);
        builder.add_file(&RelPath::parse(&path).unwrap(), &object).unwrap();
    }
    let listing = builder.finish().unwrap();
    let table = Table::new(&listing, OWNERSHIP, at(1));
    let ledger = Ledger::create(&LedgerPlace::within(directory.path())).unwrap();
    let started = Instant::now();
    let untold = Untold { names: std::iter::empty(), directories: &[] };
    ledger.save(&listing, &table, untold, std::iter::empty()).unwrap();
    let saved = started.elapsed();
    drop((listing, table));
    let path: PathBuf = directory.path().join("table");
    let each = fs::metadata(path).unwrap().len() / FILES;
    let started = Instant::now();
    let shown = ledger.load(OWNERSHIP).unwrap();
    let loaded = started.elapsed();
    assert_eq!(shown.listing.len() as u64, FILES);
    eprintln!("table: {each} bytes for each file, saved in {saved:?}, loaded in {loaded:?}");
    journal(&ledger);
}

fn journal(ledger: &Ledger) {
    const OPENS: u64 = 100_000;
    let numbers = Numbers::default();
    let mut journal = Journal::create(ledger, std::iter::empty(), &numbers).unwrap();
    let object = Arc::new(object("part-001/file-0000001.parquet", &"e".repeat(35), 7));
    let started = Instant::now();
    for n in 0..OPENS {
        let open = Noted { number: n, handle: n, request: 2 * n, backing: Some(1) };
        journal.opened(open, Some(&object)).unwrap();
        journal.released(n).unwrap();
    }
    let each = started.elapsed() / u32::try_from(OPENS).unwrap();
    let bytes = fs::metadata(ledger.opens()).unwrap().len() / OPENS;
    eprintln!("journal: {each:?} and {bytes} bytes for each open and release");
}
