//! The thread: connects, hands over, and notices when the keeper goes.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{Link, Shared, table::Job};
use crate::{
    failure::full_message,
    keeper::{Client, ClientError, Refusal},
};

/// The first pause after a failure to connect; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause: how late a keeper that is back is noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// After how long something that was refused is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Until the custodian stops.
pub(super) fn run(shared: &Shared) {
    let mut pause = FIRST_PAUSE;
    while !shared.table.lock().stops() {
        let began = Instant::now();
        let served = Client::connect(&shared.socket, Duration::ZERO)
            .and_then(|client| serve(shared, client));
        let Err(error) = served else { return };
        away(shared, &error);
        // A connection that stood for a while was a good one, unlike one that ends at its first
        // request.
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        let end = Instant::now() + pause;
        pause = (2 * pause).min(LONGEST_PAUSE);
        let mut table = shared.table.lock();
        while !table.stops() && !shared.changed.wait_until(&mut table, end).timed_out() {}
    }
}

/// Notes that the keeper is away, and logs it once.
fn away(shared: &Shared, error: &ClientError) {
    let text = full_message(error);
    let mut table = shared.table.lock();
    if table.status().link != Link::Away(text.clone()) {
        tracing::warn!(
            error = text.as_str(),
            "keeper is not there; FUSE mounts end with this process until it is"
        );
    }
    table.set_away(text, holds_nothing(error));
    drop(table);
    shared.changed.notify_all();
}

/// Whether the keeper has nothing that this build could have. One that is busy or was lost may; one
/// that does not listen has ended; one of other versions ends before it speaks ours.
fn holds_nothing(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { error, .. } => {
            matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
        }
        ClientError::Versions { .. } | ClientError::Foreign(_) => true,
        ClientError::Refused { refusal, .. } => {
            matches!(refusal, Refusal::Denied | Refusal::Version)
        }
        ClientError::Malformed(_) | ClientError::State(_) | ClientError::Lost(_) => false,
    }
}

/// Sees to a keeper that is there; `Ok` when the custodian stops.
fn serve(shared: &Shared, mut client: Client) -> Result<(), ClientError> {
    take_over(shared, &mut client)?;
    loop {
        let job = {
            let table = shared.table.lock();
            if table.stops() {
                return Ok(());
            }
            table.next()
        };
        match job {
            Some(job) => perform(shared, &mut client, &job)?,
            None => idle(shared, &client)?,
        }
        shared.changed.notify_all();
    }
}

/// Takes what earlier plugins left.
fn take_over(shared: &Shared, client: &mut Client) -> Result<(), ClientError> {
    let listed = client.list()?.into_iter().map(|listed| listed.name).collect();
    let to_take = shared.table.lock().connected(&listed);
    let count = to_take.len();
    for name in to_take {
        match client.take(name) {
            Ok(kept) => shared.table.lock().found(kept),
            Err(error) if error.ends_connection() => return Err(error),
            Err(error) => {
                tracing::warn!(name = %name, error = full_message(&error), "failed to take over");
                // Taken by us, it would never be given up, and its readers would wait for ever.
                shared.table.lock().release(name);
            }
        }
    }
    tracing::info!(held = listed.len(), taken = count, "keeper is there");
    shared.table.lock().set_connected(client.hold_for());
    shared.changed.notify_all();
    Ok(())
}

fn perform(shared: &Shared, client: &mut Client, job: &Job) -> Result<(), ClientError> {
    let outcome = match job {
        Job::Put(kept) => client.put(kept.name, &kept.fd, &kept.state),
        Job::Update(name, state) => client.update(*name, state),
        Job::Release(name) => client.release(*name),
    };
    match outcome {
        Ok(()) => shared.table.lock().done(job),
        Err(error) if error.ends_connection() => return Err(error),
        Err(error) => {
            let is_unknown =
                matches!(error, ClientError::Refused { refusal: Refusal::Unknown, .. });
            if !is_unknown {
                tracing::warn!(error = full_message(&error), "keeper refused a descriptor");
            }
            shared.table.lock().refused(job, full_message(&error));
        }
    }
    Ok(())
}

/// Waits until there is something to do, or the keeper goes.
fn idle(shared: &Shared, client: &Client) -> Result<(), ClientError> {
    let has_refused = shared.table.lock().has_refused();
    let seconds = i64::try_from(RETRY.as_secs()).unwrap_or(i64::MAX);
    let timeout = has_refused.then_some(Timespec { tv_sec: seconds, tv_nsec: 0 });
    let mut fds = [PollFd::new(&shared.wake, PollFlags::IN), PollFd::new(client, PollFlags::IN)];
    match poll(&mut fds, timeout.as_ref()) {
        Ok(0) => shared.table.lock().retry(),
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(ClientError::Lost(error.into())),
    }
    if !fds[1].revents().is_empty() {
        return Err(ClientError::Lost(std::io::ErrorKind::UnexpectedEof.into()));
    }
    // Whatever was noted before is seen now; what is noted later wakes again.
    match rustix::io::read(&shared.wake, &mut [0; 8]) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(ClientError::Lost(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case(Refusal::Busy, false; "another plugin may hold what we want")]
    #[test_case(Refusal::Malformed, false; "a frame was damaged")]
    #[test_case(Refusal::Other(99), false; "a newer keeper has a reason of its own")]
    #[test_case(Refusal::Full, false)]
    #[test_case(Refusal::Denied, true)]
    #[test_case(Refusal::Version, true)]
    fn a_keeper_that_refuses_may_hold_something_all_the_same(refusal: Refusal, nothing: bool) {
        let error = ClientError::Refused { refusal, text: String::new() };
        assert_eq!(holds_nothing(&error), nothing);
    }
}
