//! FORMAT.md beside what is written: each field is where its table says.

use super::tests::{DISK, REGION, head, run};
use super::*;

const DOCUMENT: &str = include_str!("../../../FORMAT.md");

/// A table of fields: name, offset and length of each.
struct Fields(Vec<(String, usize, usize)>);

/// Returns the tables that begin with an offset, in order.
fn tables() -> Vec<Fields> {
    let mut tables: Vec<Fields> = Vec::new();
    for line in DOCUMENT.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match cells[..] {
            ["", "offset", "length", "field", ..] => tables.push(Fields(Vec::new())),
            ["", offset, length, name, _, ""] => {
                if let (Ok(offset), Ok(length)) = (offset.parse(), length.parse()) {
                    let fields = tables.last_mut().expect("a table has a first line");
                    fields.0.push((name.to_owned(), offset, length));
                }
            }
            _ => (),
        }
    }
    tables
}

impl Fields {
    /// Returns the bytes of all fields, which have to lie one behind the other.
    fn length(&self) -> usize {
        self.0.iter().fold(0, |end, (name, offset, length)| {
            assert_eq!(*offset, end, "{name} begins where the field before it ends");
            offset + length
        })
    }

    /// Compares a field of what was written.
    fn check(&self, bytes: &[u8], name: &str, expected: &[u8]) {
        let field = self.0.iter().find(|(field, ..)| field == name);
        let (_, offset, length) = field.unwrap_or_else(|| panic!("no field {name}"));
        assert_eq!(&bytes[*offset..offset + length], expected, "{name}");
    }
}

fn check_run(fields: &Fields, bytes: &[u8], stored: &Stored) {
    fields.check(bytes, "file", &stored.key.file.0.to_le_bytes());
    fields.check(bytes, "version", &stored.version.to_le_bytes());
    fields.check(bytes, "block", &stored.key.block.to_le_bytes());
    fields.check(bytes, "block length", &stored.block_length.to_le_bytes());
    fields.check(bytes, "first chunk", &stored.chunks.first.to_le_bytes());
    fields.check(bytes, "end chunk", &stored.chunks.end.to_le_bytes());
    fields.check(bytes, "payload", &stored.payload.to_le_bytes());
}

#[test]
fn each_field_is_where_the_document_says() {
    let tables = tables();
    let [superblock, fixed, record, entry, last] = &tables[..] else {
        panic!("{} tables of fields", tables.len());
    };
    let title = format!("# The format of a disk, version {FORMAT_VERSION}\n");
    assert!(DOCUMENT.starts_with(&title), "the document is of another version");

    assert_eq!(superblock.length(), SUPERBLOCK_LENGTH);
    let sample = Superblock { disk: DISK, block_size: 11, shard_count: 22, region_pages: 33 };
    let bytes = sample.encode();
    superblock.check(&bytes, "magic", b"MILLDISK");
    superblock.check(&bytes, "format", &FORMAT_VERSION.to_le_bytes());
    superblock.check(&bytes, "block size", &11_u32.to_le_bytes());
    superblock.check(&bytes, "shard count", &22_u32.to_le_bytes());
    superblock.check(&bytes, "region pages", &33_u32.to_le_bytes());
    superblock.check(&bytes, "identity", &DISK);
    let sum = crc32fast::hash(&bytes[..SUPERBLOCK_LENGTH - 4]);
    superblock.check(&bytes, "checksum", &sum.to_le_bytes());

    assert_eq!(fixed.length(), FIXED_LENGTH);
    let (sample, page) = (head(), 12_u32);
    let bytes = sample.encode(&REGION, page);
    let length = FIXED_LENGTH + 2 * RECORD_LENGTH + 2 * DROP_LENGTH + 48 * 4;
    fixed.check(&bytes, "magic", b"MRGH");
    fixed.check(&bytes, "checksum", &crc32fast::hash(&bytes[8..length]).to_le_bytes());
    fixed.check(&bytes, "length", &(length as u32).to_le_bytes());
    fixed.check(&bytes, "shard", &REGION.shard.to_le_bytes());
    fixed.check(&bytes, "record count", &2_u16.to_le_bytes());
    fixed.check(&bytes, "identity", &DISK);
    fixed.check(&bytes, "sequence", &REGION.sequence.to_le_bytes());
    fixed.check(&bytes, "page", &page.to_le_bytes());
    fixed.check(&bytes, "group pages", &49_u32.to_le_bytes());
    fixed.check(&bytes, "head pages", &1_u16.to_le_bytes());
    fixed.check(&bytes, "drop count", &2_u16.to_le_bytes());

    assert_eq!(record.length(), RECORD_LENGTH);
    let second = &bytes[FIXED_LENGTH + RECORD_LENGTH..];
    check_run(record, second, &sample.records[1]);
    record.check(second, "has code", &1_u32.to_le_bytes());
    record.check(second, "code", &[9; 32]);
    let drops = &bytes[FIXED_LENGTH + 2 * RECORD_LENGTH..];
    assert_eq!(drops[..16], 3_u128.to_le_bytes(), "drops are behind the records");
    assert_eq!(drops[36..40], 1_u32.to_le_bytes(), "sums are behind the drops");

    assert_eq!(entry.length(), ENTRY_LENGTH);
    let stored = run(4, 3, 5, 17);
    let entries = [FooterEntry::Drop(FileId(8)), FooterEntry::Run { head: 99, stored }];
    let bytes = encode_footer(&REGION, &entries);
    entry.check(&bytes, "file", &8_u128.to_le_bytes());
    entry.check(&bytes, "end chunk", &0_u32.to_le_bytes());
    check_run(entry, &bytes[ENTRY_LENGTH..], &stored);
    entry.check(&bytes[ENTRY_LENGTH..], "head", &99_u32.to_le_bytes());

    assert_eq!(last.length(), FIXED_LENGTH);
    let page = &bytes[bytes.len() - PAGE_SIZE as usize..];
    last.check(page, "magic", b"MRFT");
    last.check(page, "checksum", &crc32fast::hash(&page[8..64]).to_le_bytes());
    last.check(page, "identity", &DISK);
    last.check(page, "sequence", &REGION.sequence.to_le_bytes());
    last.check(page, "entry count", &2_u32.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..2 * ENTRY_LENGTH]);
    last.check(page, "entries checksum", &sum.to_le_bytes());
    last.check(page, "shard", &u32::from(REGION.shard).to_le_bytes());
    for limit in [format!("{RECORDS_MAX} at most"), format!("{DROPS_MAX} at most")] {
        assert!(DOCUMENT.contains(&limit), "{limit}");
    }
}
