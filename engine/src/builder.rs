//! How a node is set up and started.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use logdrive_net::{Listen, MtuProfile};
use logdrive_raft::{ClusterId, GroupId, Incarnation, NodeId};
use logdrive_shard::{SnapshotSettings, StateMachine};
use logdrive_wal::{FreshIds, Identity};

use crate::apply::ApplyOn;
use crate::clients::Encoder;
use crate::clock::Clock;
use crate::disk;
use crate::error::StartError;
use crate::links::LinksSetup;
use crate::metrics::Metrics;
use crate::node::{Group, Node};
use crate::settings::{self, Limits, RaftSettings, WalSettings, core_settings};
use crate::shared::Shared;
use crate::thread::{self, Setup};
use crate::tls::Tls;

/// A node that is being set up. Everything but the directory and the machine has a default.
pub struct NodeBuilder<S: StateMachine> {
    dir: PathBuf,
    machines: Box<dyn FnMut(GroupId) -> S + Send>,
    id: NodeId,
    cluster: String,
    groups: Vec<GroupId>,
    members: Vec<(NodeId, String)>,
    listen_peer: Option<Listen>,
    listen_client: Option<(Listen, Encoder<S::Output>)>,
    tls: Option<Tls>,
    mtu: MtuProfile,
    limits: Limits,
    raft: RaftSettings,
    wal: WalSettings,
    snapshots: SnapshotSettings,
    apply_on: ApplyOn,
    seed: Option<u64>,
}

impl<S: StateMachine> std::fmt::Debug for NodeBuilder<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeBuilder(node {} in {})", self.id, self.dir.display())
    }
}

impl<S: StateMachine> Node<S> {
    /// Sets up a node whose data lies in `dir`. `machines` makes the machine of each group the node holds,
    /// among them groups that the log knows from earlier.
    ///
    /// With nothing else set it is node 1 of a cluster of one, with one group, and listens nowhere.
    pub fn builder(
        dir: impl Into<PathBuf>,
        machines: impl FnMut(GroupId) -> S + Send + 'static,
    ) -> NodeBuilder<S> {
        NodeBuilder {
            dir: dir.into(),
            machines: Box::new(machines),
            id: NodeId(1),
            cluster: "local".to_owned(),
            groups: vec![GroupId(1)],
            members: Vec::new(),
            listen_peer: None,
            listen_client: None,
            tls: None,
            mtu: MtuProfile::Ethernet,
            limits: Limits::default(),
            raft: RaftSettings::default(),
            wal: WalSettings::default(),
            snapshots: SnapshotSettings::default(),
            apply_on: ApplyOn::default(),
            seed: None,
        }
    }
}

impl<S: StateMachine> NodeBuilder<S> {
    /// The operator's number of this node. Not 0.
    #[must_use]
    pub fn id(mut self, id: u64) -> Self {
        self.id = NodeId(id);
        self
    }

    /// The name of the cluster. Nodes and clients of another cluster are refused.
    #[must_use]
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// The groups that the node takes part in from the start.
    #[must_use]
    pub fn groups(mut self, groups: impl IntoIterator<Item = u64>) -> Self {
        self.groups = groups.into_iter().map(GroupId).collect();
        self
    }

    /// The first voters of every group, with the addresses their peers reach them at. Counts until a group
    /// has formed, and as addresses to dial; must be the same on every node.
    #[must_use]
    pub fn members<A: Into<String>>(mut self, members: impl IntoIterator<Item = (u64, A)>) -> Self {
        let member = |(id, address): (u64, A)| (NodeId(id), address.into());
        self.members = members.into_iter().map(member).collect();
        self
    }

    /// Where peers reach this node. Port 0 takes a free one.
    #[must_use]
    pub fn listen_peer(mut self, address: SocketAddr) -> Self {
        self.listen_peer = Some(address.into());
        self
    }

    /// The same on a socket that is bound already. Whoever keeps a clone of it keeps the port, also while
    /// the node is down.
    #[must_use]
    pub fn listen_peer_on(mut self, socket: UdpSocket) -> Self {
        self.listen_peer = Some(Listen::Socket(Arc::new(socket)));
        self
    }

    /// Where clients reach this node. Outputs go to them as bytes.
    #[must_use]
    pub fn listen_client(mut self, address: SocketAddr) -> Self
    where
        S::Output: Into<Bytes>,
    {
        self.listen_client = Some((address.into(), Into::into));
        self
    }

    /// The same on a socket that is bound already.
    #[must_use]
    pub fn listen_client_on(mut self, socket: UdpSocket) -> Self
    where
        S::Output: Into<Bytes>,
    {
        self.listen_client = Some((Listen::Socket(Arc::new(socket)), Into::into));
        self
    }

    /// Who this node is to its peers and clients. Needed to listen.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How large packets may be: `ethernet` (the default), `jumbo` or `loopback`.
    #[must_use]
    pub fn mtu(mut self, mtu: Mtu) -> Self {
        self.mtu = mtu.into();
        self
    }

    /// Bounds of memory and queues.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Timings of elections.
    #[must_use]
    pub fn raft(mut self, raft: RaftSettings) -> Self {
        self.raft = raft;
        self
    }

    /// The log on disk.
    #[must_use]
    pub fn wal(mut self, wal: WalSettings) -> Self {
        self.wal = wal;
        self
    }

    /// When snapshots are taken, and how much log is kept.
    #[must_use]
    pub fn snapshots(mut self, snapshots: SnapshotSettings) -> Self {
        self.snapshots = snapshots;
        self
    }

    /// Where the machines are applied.
    #[must_use]
    pub fn apply_on(mut self, apply_on: ApplyOn) -> Self {
        self.apply_on = apply_on;
        self
    }

    /// Where randomised timeouts come from; drawn if not set.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Opens the log, the machines and the ports, and starts the threads. Blocks until the node runs.
    pub fn start(self) -> Result<Node<S>, StartError> {
        self.check()?;
        let path = self.dir.join("wal-0");
        std::fs::create_dir_all(&path).map_err(|source| StartError::Directory {
            path: path.clone(),
            source,
        })?;
        let members = if self.members.is_empty() {
            vec![(self.id, String::new())]
        } else {
            self.members
        };
        let fresh = FreshIds {
            incarnation: Incarnation(random()?),
            log_uuid: random()?,
        };
        let identity = Identity {
            cluster: ClusterId::named(&self.cluster),
            node: self.id,
        };
        let options = self.wal.options(identity, fresh);
        let seed = match self.seed {
            Some(seed) => seed,
            None => u64::try_from(random()? >> 64).expect("the upper half of 128 bits"),
        };
        let shared = Arc::new(Shared::new(
            self.id,
            self.cluster.clone(),
            self.limits.clone(),
        ));
        let metrics = Arc::new(Metrics::new());
        let clock = Clock::start();
        let net = LinksSetup {
            dir: self.dir.clone(),
            cluster: ClusterId::named(&self.cluster),
            members: members.clone(),
            listen_peer: self.listen_peer,
            listen_client: self.listen_client,
            tls: self.tls,
            mtu: self.mtu,
            shared: Arc::clone(&shared),
        };
        let (backend, slots) = (self.wal.backend, path.clone());
        let setup = Setup {
            disk: Box::new(move || disk::open(&slots, backend)),
            wal: options,
            wal_path: path,
            snapshots_path: self.dir.join("snapshots"),
            snapshots: settings::snapshots_for(&self.snapshots, &self.wal),
            cluster: ClusterId::named(&self.cluster),
            groups: self.groups,
            members,
            machines: self.machines,
            core: core_settings(&self.limits, &self.raft, seed),
            limits: self.limits,
            apply_on: self.apply_on,
            net,
            shared: Arc::clone(&shared),
            metrics: Arc::clone(&metrics),
            clock,
        };
        let (started, starts) = sync_channel(1);
        let thread = thread::spawn(&format!("logdrive-{}", self.id), setup, started)?;
        let running = match starts.recv() {
            Ok(running) => running?,
            Err(_) => {
                drop(thread.join());
                return Err(StartError::Died(
                    "it panicked; the log line before says why".to_owned(),
                ));
            }
        };
        let groups: BTreeMap<GroupId, Group<S>> = running
            .groups
            .into_iter()
            .map(|(id, (inbox, reader))| {
                (
                    id,
                    Group {
                        id,
                        inbox,
                        reader,
                        apply: Arc::clone(&running.apply),
                        shared: Arc::clone(&shared),
                    },
                )
            })
            .collect();
        Ok(Node {
            shared,
            groups,
            apply: running.apply,
            snapshots: running.snapshots,
            metrics,
            clock,
            threads: Mutex::new([thread].into_iter().chain(running.threads).collect()),
            replica: running.replica,
            boot: running.boot,
            peer_address: running.peer_address,
            client_address: running.client_address,
        })
    }

    /// Says whether the settings go together, and starts nothing. [`NodeBuilder::start`] asks it first.
    pub fn check(&self) -> Result<(), StartError> {
        let wrong = |text: String| Err(StartError::Configuration(text));
        if self.id.0 == 0 {
            return wrong("node ids begin at 1".to_owned());
        }
        if self.groups.is_empty() {
            return wrong("a node takes part in at least one group".to_owned());
        }
        if !self.members.is_empty() && !self.members.iter().any(|(id, _)| *id == self.id) {
            let listed: Vec<String> = self.members.iter().map(|(id, _)| id.to_string()).collect();
            let (id, listed) = (self.id, listed.join(", "));
            return wrong(format!(
                "this is node {id}, and the members listed are {listed}"
            ));
        }
        if self.members.len() > 1 && self.listen_peer.is_none() {
            return wrong("a cluster of several nodes needs listen_peer".to_owned());
        }
        let listens = self.listen_peer.is_some() || self.listen_client.is_some();
        if listens && self.tls.is_none() {
            return wrong(
                "a node that listens needs tls: make certificates with `logdrive tls init` and \
                 `logdrive tls issue`"
                    .to_owned(),
            );
        }
        settings::check_snapshots(&self.snapshots).map_err(StartError::Configuration)?;
        settings::check(&self.limits, &self.raft, &self.wal).map_err(StartError::Configuration)
    }
}

/// How large packets may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mtu {
    /// 1452 bytes of UDP payload: any Ethernet.
    #[default]
    Ethernet,
    /// 8900 bytes: a network of jumbo frames end to end.
    Jumbo,
    /// 65000 bytes: the loopback device only.
    Loopback,
}

impl From<Mtu> for MtuProfile {
    fn from(mtu: Mtu) -> Self {
        match mtu {
            Mtu::Ethernet => Self::Ethernet,
            Mtu::Jumbo => Self::Jumbo,
            Mtu::Loopback => Self::Loopback,
        }
    }
}

fn random() -> Result<u128, StartError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| StartError::Configuration(format!("no random numbers: {error}")))?;
    Ok(u128::from_le_bytes(bytes))
}
