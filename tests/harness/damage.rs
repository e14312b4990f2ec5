//! Damage to the memory of a running process, as failing hardware does it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

/// Bytes that are searched at once.
const CHUNK_SIZE: usize = 1 << 20;

/// Flips the lowest bit of the first byte of `bytes` wherever they lie in the memory that the process
/// serves from; returns how often that was.
///
/// # Panics
/// If the process is gone, or its memory may not be written.
pub fn flip(process: u32, bytes: &[u8]) -> usize {
    let path = format!("/proc/{process}/mem");
    let memory = OpenOptions::new().read(true).write(true).open(path);
    let memory = memory.expect("open the memory of the process");
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps"));
    let maps = maps.expect("read the maps of the process");
    let mut count = 0;
    for map in maps.lines().filter(|line| line.contains("memfd:millrace-arena")) {
        let range = map.split_whitespace().next().and_then(|range| range.split_once('-'));
        let (start, end) = range.expect("a range of addresses");
        let address = |text| u64::from_str_radix(text, 16).expect("an address");
        count += flip_in(&memory, address(start), address(end), bytes);
    }
    count
}

fn flip_in(memory: &File, start: u64, end: u64, bytes: &[u8]) -> usize {
    let mut count = 0;
    let mut position = start;
    while position < end {
        // The chunks overlap, so that nothing is missed that lies across two of them.
        let length = (CHUNK_SIZE + bytes.len()).min((end - position) as usize);
        let mut chunk = vec![0; length];
        memory.read_exact_at(&mut chunk, position).expect("read the memory of the process");
        // Blocks begin where pages do.
        for (index, _) in chunk.chunks(4096).enumerate() {
            let place = index * 4096;
            if place < CHUNK_SIZE && chunk[place..].starts_with(bytes) {
                let damaged = [bytes[0] ^ 1];
                let written = memory.write_all_at(&damaged, position + place as u64);
                written.expect("write the memory of the process");
                count += 1;
            }
        }
        position += CHUNK_SIZE as u64;
    }
    count
}
