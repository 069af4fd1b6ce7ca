//! Grows.

pub struct Queue {
    jobs: Vec<Vec<u8>>,
}

impl Queue {
    pub fn new() -> Queue {
        Queue { jobs: super::untracked(100) }
    }

    #[inline(never)]
    pub fn fill(&mut self, jobs: usize) {
        for _ in 0..jobs {
            self.jobs.push(Vec::with_capacity(4_096));
        }
    }
    pub const LINE: u32 = line!() - 3;
}
