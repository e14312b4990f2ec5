//! Allocates runs of pages: a binary buddy allocator whose lists live in arrays made at start.
//!
//! Owns which pages are free. Always holds: a free piece of order `n` is 2^n pages at a multiple of
//! 2^n, and its buddy is not a free piece of the same order (else they would be one). A run of any
//! length is given from the smallest piece that holds it and the tail goes back, so nothing is lost to
//! rounding; when no piece is large enough the largest one is given, and the caller asks again.

/// Largest piece: 2^12 pages, 16 MiB, the largest block.
const ORDER_MAX: usize = 12;
/// End of a list.
const NONE: u32 = u32::MAX;
/// The page is not the first of a free piece.
const TAKEN: u8 = u8::MAX;
/// Bytes of bookkeeping for each page.
pub(crate) const PAGE_COST: usize = size_of::<Link>() + size_of::<u8>();

/// A free piece's place in the list of its order, kept at the index of its first page.
#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

pub(super) struct Buddy {
    links: Vec<Link>,
    /// Order of the free piece that begins at this page, or `TAKEN`.
    orders: Vec<u8>,
    heads: [u32; ORDER_MAX + 1],
    free_count: u32,
}

impl Buddy {
    pub(super) fn new(page_count: u32) -> Buddy {
        let mut buddy = Buddy {
            links: vec![Link { previous: NONE, next: NONE }; page_count as usize],
            orders: vec![TAKEN; page_count as usize],
            heads: [NONE; ORDER_MAX + 1],
            free_count: 0,
        };
        buddy.free(0, page_count);
        buddy
    }

    pub(super) fn page_count(&self) -> u32 {
        self.orders.len() as u32
    }

    pub(super) fn free_count(&self) -> u32 {
        self.free_count
    }

    /// Takes a run of `wanted` pages, or the longest free piece if none is that long. Returns first
    /// page and page count; `None` when nothing is free.
    pub(super) fn allocate_up_to(&mut self, wanted: u32) -> Option<(u32, u32)> {
        let order_wanted = (wanted.next_power_of_two().trailing_zeros() as usize).min(ORDER_MAX);
        let large_enough = (order_wanted..=ORDER_MAX).find(|order| self.heads[*order] != NONE);
        let order = large_enough
            .or_else(|| (0..order_wanted).rev().find(|order| self.heads[*order] != NONE))?;
        let page = self.heads[order];
        self.unlink(page, order);
        let size = 1 << order;
        let taken = wanted.min(size);
        self.free_count -= size;
        if taken < size {
            self.free(page + taken, size - taken);
        }
        Some((page, taken))
    }

    /// Gives a run back, as the fewest aligned pieces, each joined with its buddy while that is free.
    pub(super) fn free(&mut self, page: u32, page_count: u32) {
        let end = page + page_count;
        self.free_count += page_count;
        let mut start = page;
        while start < end {
            let aligned = if start == 0 { ORDER_MAX as u32 } else { start.trailing_zeros() };
            let order = aligned.min((end - start).ilog2()).min(ORDER_MAX as u32);
            self.free_piece(start, order as usize);
            start += 1 << order;
        }
    }

    fn free_piece(&mut self, mut page: u32, mut order: usize) {
        assert_eq!(self.orders[page as usize], TAKEN, "page {page} is freed twice");
        while order < ORDER_MAX {
            let buddy = page ^ (1 << order);
            if self.orders.get(buddy as usize) != Some(&(order as u8)) {
                break;
            }
            self.unlink(buddy, order);
            page = page.min(buddy);
            order += 1;
        }
        let head = self.heads[order];
        self.links[page as usize] = Link { previous: NONE, next: head };
        if head != NONE {
            self.links[head as usize].previous = page;
        }
        self.heads[order] = page;
        self.orders[page as usize] = order as u8;
    }

    fn unlink(&mut self, page: u32, order: usize) {
        let Link { previous, next } = self.links[page as usize];
        if previous == NONE {
            self.heads[order] = next;
        } else {
            self.links[previous as usize].next = next;
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        self.orders[page as usize] = TAKEN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes random runs beside a plain map of pages: no page twice, none lost, and all free at the end
    /// joins to whole pieces again.
    #[test]
    fn runs_never_overlap_and_none_is_lost() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let page_count = random.u32(1..10_000);
            let mut buddy = Buddy::new(page_count);
            let mut owner = vec![false; page_count as usize];
            let mut runs: Vec<(u32, u32)> = Vec::new();
            for _ in 0..2_000 {
                if random.bool() && !runs.is_empty() {
                    let (page, count) = runs.swap_remove(random.usize(..runs.len()));
                    buddy.free(page, count);
                    owner[page as usize..(page + count) as usize].fill(false);
                } else if let Some((page, count)) = buddy.allocate_up_to(random.u32(1..300)) {
                    for taken in &mut owner[page as usize..(page + count) as usize] {
                        assert!(!*taken);
                        *taken = true;
                    }
                    runs.push((page, count));
                }
                assert_eq!(
                    buddy.free_count() as usize,
                    owner.iter().filter(|taken| !**taken).count()
                );
            }
            for (page, count) in runs {
                buddy.free(page, count);
            }
            let mut pieces = 0;
            let mut rest = page_count;
            while let Some((_, count)) = buddy.allocate_up_to(1 << ORDER_MAX) {
                pieces += 1;
                rest -= count;
            }
            assert_eq!(rest, 0);
            let whole = page_count >> ORDER_MAX;
            let tail = page_count & ((1 << ORDER_MAX) - 1);
            assert_eq!(pieces, whole + tail.count_ones());
        }
    }

    #[test]
    fn a_run_of_any_length_wastes_nothing() {
        let mut buddy = Buddy::new(256);
        assert_eq!(buddy.allocate_up_to(150), Some((0, 150)));
        assert_eq!(buddy.free_count(), 106);
    }
}
