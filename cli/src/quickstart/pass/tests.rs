//! Comparison and cutting, without a node.

use millrace_client::FileId;

use super::*;

fn file(path: &str, length: u64, block_size: u32, modified_ms: i64) -> File {
    File {
        path: path.into(),
        id: FileId(1),
        version: 1,
        length,
        block_size,
        kind: Kind::File,
        modified_ms,
    }
}

fn sample(length: u64) -> Sample {
    Sample { file: file("f", length, 1 << 20, 0), state: State::Good }
}

#[test]
fn every_byte_and_every_empty_file_is_in_one_piece() {
    let lengths = [0, 1, 1 << 20, (1 << 20) + 1, 200 << 20, 0];
    let samples: Vec<Sample> = lengths.into_iter().map(sample).collect();
    let indexes: Vec<usize> = (0..samples.len()).collect();
    let batches = batches(&indexes, &samples);
    for batch in &batches {
        let bytes: u64 = batch.iter().map(|piece| piece.length).sum();
        assert!(bytes < BATCH_BYTES + (1 << 20), "a batch has {bytes} bytes");
    }
    for (index, length) in lengths.into_iter().enumerate() {
        let pieces = batches.iter().flatten().filter(|piece| piece.sample_index == index);
        let mut end = 0;
        let mut count = 0;
        for piece in pieces {
            assert_eq!(piece.offset, end);
            end += piece.length;
            count += 1;
        }
        assert_eq!(end, length);
        assert_eq!(count, length.div_ceil(1 << 20).max(1));
    }
}

#[test]
fn many_small_files_make_several_batches() {
    let samples: Vec<Sample> = (0..BATCH_READS + 1).map(|_| sample(10)).collect();
    let indexes: Vec<usize> = (0..samples.len()).collect();
    assert_eq!(batches(&indexes, &samples).len(), 2);
}

/// A source of this content, and the file that a node would tell of it.
fn source(content: &[u8]) -> (tempfile::TempDir, File) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("f");
    std::fs::write(&path, content).unwrap();
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let modified_ms = modified.duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    (root, file("f", content.len() as u64, 64, modified_ms))
}

#[test]
fn one_wrong_byte_is_found_at_its_offset() {
    let (root, file) = source(b"0123456789");
    let original = Original::open(root.path(), &file);
    let compare = |offset, bytes: &[u8]| original.compare(&file, offset, bytes.len() as u64, bytes);
    assert!(matches!(compare(0, b"0123456789"), Verdict::Same));
    assert!(matches!(compare(4, b"456"), Verdict::Same));
    assert!(matches!(compare(10, b""), Verdict::Same));
    assert!(matches!(compare(4, b"4x6"), Verdict::Differs(5)));
}

#[test]
fn file_that_changed_is_no_mismatch() {
    let (root, file) = source(b"0123456789");
    let original = Original::open(root.path(), &file);
    assert!(matches!(original.compare(&file, 0, 10, b"short"), Verdict::Changed));
    std::fs::write(root.path().join("f"), b"something longer").unwrap();
    assert!(matches!(original.compare(&file, 0, 10, b"0123456789"), Verdict::Changed));
}

#[test]
fn file_that_went_away_is_unreadable() {
    let (root, mut file) = source(b"x");
    file.path = "gone".into();
    let original = Original::open(root.path(), &file);
    assert!(matches!(original.compare(&file, 0, 1, b"x"), Verdict::Unreadable(_)));
}
