//! Snapshot file → the page on loopback, until the program is ended.

use crate::arguments::Page;
use crate::failure::{self, Failure};
use crate::{file, text};

pub fn run(options: &Page) -> Result<(), Failure> {
    let loaded = file::load(&options.files)?;
    loaded.notes.iter().for_each(|note| failure::say(note));
    let page = loaded.page;
    page.serve(options.addr, |addr| {
        // Where stdout is closed, the page is served all the same.
        let _ = text::print(&format!(
            "http://{addr}/debug/heap shows {}, until Ctrl-C\n",
            options.files.file.display()
        ));
    })?;
    Ok(())
}
