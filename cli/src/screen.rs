//! The terminal's other screen, and the way back to what was there, however the program ends.

use std::io::{self, Write};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::terminal::{
    Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen,
};
use crossterm::{execute, queue, terminal};

/// Whether the terminal is in the state that [`Screen::enter`] gives it.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// The other screen, without a cursor and without echo. Dropping it, or a panic, brings the terminal back as it was.
pub struct Screen(());

impl Screen {
    pub fn enter() -> io::Result<Screen> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            // Its message would be lost with the other screen.
            panic::set_hook(Box::new(move |panic| {
                leave();
                before(panic);
            }));
        });
        terminal::enable_raw_mode()?;
        ENTERED.store(true, Ordering::SeqCst);
        let screen = Screen(());
        execute!(io::stdout(), EnterAlternateScreen, Hide, DisableLineWrap)?;
        Ok(screen)
    }

    /// Shows a text in place of the one before. Lines beyond the last of the terminal are left out.
    pub fn show(&self, text: &str) -> io::Result<()> {
        let (_, height) = terminal::size()?;
        let mut out = io::stdout().lock();
        queue!(out, MoveTo(0, 0))?;
        for (at, line) in text.lines().take(usize::from(height)).enumerate() {
            if at > 0 {
                out.write_all(b"\r\n")?;
            }
            write!(out, "{line}")?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

/// Brings the terminal back, once.
fn leave() {
    if ENTERED.swap(false, Ordering::SeqCst) {
        // An error means that the terminal is closed, and then a message would not be read either.
        let _ = execute!(io::stdout(), EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::process::Command;

    /// Set in the process that the test below starts.
    const PANICS: &str = "HEAPGAUGE_TEST_PANICS";

    /// Runs itself in a terminal, by `script` of util-linux, between two looks at the terminal's state: it panics on the other
    /// screen there.
    #[test]
    fn a_panic_leaves_the_terminal_whole() {
        if std::env::var_os(PANICS).is_some() {
            let _screen = Screen::enter().unwrap();
            panic!("planted by a test");
        }
        let program = std::env::current_exe().unwrap();
        let test = "screen::tests::a_panic_leaves_the_terminal_whole --exact --nocapture";
        let command = format!("stty -a; {PANICS}=1 '{}' {test}; stty -a", program.display());
        let Ok(ran) = Command::new("script").args(["-q", "-c", &command, "/dev/null"]).output() else {
            eprintln!("not tested: script of util-linux is missing");
            return;
        };
        let said = String::from_utf8_lossy(&ran.stdout);
        let states: Vec<&str> = said.split("speed ").skip(1).collect();
        let [before, after] = states[..] else { panic!("{said}") };
        assert_eq!(settings(before.split("\r\nrunning").next().unwrap()), settings(after));
        let (entered, left) = (said.find("\x1b[?1049h").unwrap(), said.find("\x1b[?1049l").unwrap());
        let (hidden, shown) = (said.find("\x1b[?25l").unwrap(), said.find("\x1b[?25h").unwrap());
        let message = said.find("planted by a test").unwrap();
        assert!(entered < hidden && hidden < shown && shown < left && left < message, "{said:?}");
    }

    fn settings(state: &str) -> Vec<&str> {
        state.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
    }
}
