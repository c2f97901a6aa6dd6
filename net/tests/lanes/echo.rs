//! The echo that latencies are held against.

use crate::common::{authority, credentials, run};
use logdrive_net::echo::{self, Echo};
use logdrive_net::{Role, TransportSettings};

#[test]
fn every_message_comes_back_over_one_stream() {
    run(async {
        let authority = authority("loadgen");
        let settings = TransportSettings::default();
        let echo = Echo::bind(&credentials(&authority, Role::Peer, 1), &settings).unwrap();
        let address = echo.local_addr();
        let served = tokio::task::spawn_local(echo.serve(128));
        let client = credentials(&authority, Role::Client, 1);
        let times = echo::round_trips(address, &client, &settings, 128, 20).await;
        let times = times.unwrap();
        assert_eq!(times.len(), 20);
        assert!(times.iter().all(|time| !time.is_zero()));
        served.await.unwrap().unwrap();
    });
}

#[test]
fn a_stranger_is_not_answered() {
    run(async {
        let settings = TransportSettings::default();
        let server = credentials(&authority("loadgen"), Role::Peer, 1);
        let echo = Echo::bind(&server, &settings).unwrap();
        let address = echo.local_addr();
        let served = tokio::task::spawn_local(echo.serve(128));
        let stranger = credentials(&authority("another"), Role::Client, 1);
        let refused = echo::round_trips(address, &stranger, &settings, 128, 1).await;
        refused.unwrap_err();
        served.await.unwrap().unwrap_err();
    });
}
