//! An incumbent with a listener that is non-blocking, in an epoll loop that is not ours: tokio's, on one thread.
//!
//! `epoll CONTROL DATA_DIR` answers every line on the inherited listener `http` with its pid.

use std::error::Error;
use std::time::Instant;

use handoff::{DataDirLock, DrainReport, Drainable, Incumbent, Role, SealReport, StateSnapshot, detect_role};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

struct Nothing;

impl Drainable for Nothing {
    fn drain(&self, _deadline: Instant) -> handoff::Result<DrainReport> {
        Ok(DrainReport::default())
    }
    fn seal(&self) -> handoff::Result<SealReport> {
        Ok(SealReport { last_revision_per_shard: vec![0], data_dir_fingerprint: [0; 32] })
    }
    fn resume_after_abort(&self) -> handoff::Result<()> {
        Ok(())
    }
    fn snapshot_state(&self) -> StateSnapshot {
        StateSnapshot::default()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let Role::ColdStart { mut inherited } = detect_role()? else { return Err("it only starts cold".into()) };
    let listener = inherited.take("http").ok_or("no listener was passed")?;
    listener.set_nonblocking(true)?;
    let lock = DataDirLock::acquire(&args[2])?;
    let incumbent = Incumbent::bind_cold_start(&args[1], lock)?.with_listener("http", &listener)?;
    std::thread::spawn(move || incumbent.serve(Nothing));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (connection, _) = listener.accept().await?;
            tokio::spawn(answer(connection));
        }
    })
}

async fn answer(mut connection: tokio::net::TcpStream) -> std::io::Result<()> {
    let (read, mut write) = connection.split();
    BufReader::new(read).read_line(&mut String::new()).await?;
    write.write_all(format!("{}\n", std::process::id()).as_bytes()).await
}
