//! Standard output.

use std::{
    fmt,
    io::{ErrorKind, Write, stdout},
    process::exit,
};

/// Prints text. Ends the program if nobody reads it any more, as `head` and `true` do: that is no fault.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    let mut out = stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => exit(0),
        Err(error) => {
            eprintln!("flannel-node: cannot print: {error}");
            exit(1)
        }
    }
}

/// As `println!`, but for readers that leave.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::print(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use say;
