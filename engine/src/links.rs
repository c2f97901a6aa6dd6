//! The way to peers and clients, as the shard's thread uses it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use logdrive_net::{
    ClientNet, ClientNetConfig, Listen, MtuProfile, NetError, NetSecret, PeerEvent, PeerNet,
    PeerNetConfig, SendError, TransportSettings,
};
use logdrive_raft::message::Body;
use logdrive_raft::{
    Boot, ClusterId, GroupId, Index, Message, NodeId, Replica, ReplicationSession,
};
use logdrive_shard::{Inbox, PeerInput, StateMachine};

use crate::clients::{Addresses, Clients, Encoder};
use crate::error::StartError;
use crate::memory::NetMemory;
use crate::settings::{CLIENT_UNANSWERED_MAX, Limits};
use crate::shared::Shared;
use crate::status::{LinkStatus, Status};
use crate::tls::Tls;

/// What the links of a node are made of.
pub(crate) struct LinksSetup<S: StateMachine> {
    pub(crate) dir: PathBuf,
    pub(crate) cluster: ClusterId,
    pub(crate) members: Vec<(NodeId, String)>,
    pub(crate) listen_peer: Option<Listen>,
    pub(crate) listen_client: Option<(Listen, Encoder<S::Output>)>,
    pub(crate) tls: Option<Tls>,
    pub(crate) mtu: MtuProfile,
    pub(crate) shared: Arc<Shared>,
}

/// The links of a running node. Lives on the shard's thread.
pub(crate) struct Links<O> {
    peers: Option<PeerNet>,
    queue_bytes_max: usize,
    clients: Option<Clients<O>>,
    addresses: Addresses,
    /// Bytes of messages that the shard has stepped and whose entries still wait for the disk.
    unreleased: Cell<usize>,
    unreleased_max: usize,
    events: Cell<Vec<PeerEvent>>,
    /// Of which append streams something was not taken, and from where on.
    full: RefCell<BTreeMap<(NodeId, GroupId), (ReplicationSession, Index)>>,
}

impl<S: StateMachine> LinksSetup<S> {
    /// Binds the ports and begins to dial.
    pub(crate) async fn start(
        self,
        replica: Replica,
        boot: Boot,
        groups: &BTreeMap<GroupId, (Inbox<S::Output>, S::Reader)>,
        limits: &Limits,
    ) -> Result<Links<S::Output>, StartError> {
        let mut transport = TransportSettings::default();
        transport.mtu = self.mtu;
        let listen_failed = |address: SocketAddr| {
            move |source: NetError| StartError::Listen {
                address,
                source: Box::new(source),
            }
        };
        let path = self.dir.join("net.secret");
        let secret = NetSecret::load_or_create(&path)
            .map_err(|source| StartError::Directory { path, source })?;
        let addresses = Addresses::default();
        let clients = match (&self.tls, self.listen_client) {
            (Some(tls), Some((listen, encode))) => {
                let address = listen.address();
                let credentials = tls.credentials.clone();
                let mut config = ClientNetConfig::new(
                    replica.id,
                    self.cluster,
                    address,
                    credentials,
                    secret.clone(),
                );
                config.listen = listen;
                config.transport = transport;
                config.inbox_bytes_max = limits.client_bytes_max;
                config.unanswered_max = CLIENT_UNANSWERED_MAX;
                config.responses_bytes_max = limits.client_bytes_max;
                config.answers_bytes_max = limits.client_answers_bytes_max;
                let net = ClientNet::start(config)
                    .await
                    .map_err(listen_failed(address))?;
                net.set_waker(self.shared.waker());
                let inboxes = groups
                    .iter()
                    .map(|(group, (inbox, _))| (*group, inbox.clone()))
                    .collect();
                let (shared, addresses) = (Arc::clone(&self.shared), addresses.clone());
                Some(Clients::new(net, encode, inboxes, addresses, shared))
            }
            _ => None,
        };
        // Peers are told where clients find this node, so that port comes first.
        let client_address = clients
            .as_ref()
            .map(|clients| clients.address().to_string());
        let peers = match (&self.tls, self.listen_peer) {
            (Some(tls), Some(listen)) => {
                let address = listen.address();
                let credentials = tls.credentials.clone();
                let mut config =
                    PeerNetConfig::new(replica, boot, self.cluster, address, credentials, secret);
                config.listen = listen;
                config.transport = transport;
                config.client_address = client_address;
                config.groups_max = u32::try_from(groups.len()).unwrap_or(u32::MAX).max(1);
                config.queue_bytes_max = limits.peer_queue_bytes_max;
                config.inbox_bytes_max = limits.inbox_bytes_max;
                let mut peers = PeerNet::start(config)
                    .await
                    .map_err(listen_failed(address))?;
                peers.set_waker(self.shared.waker());
                peers.set_peers(self.members);
                Some(peers)
            }
            _ => None,
        };
        let buffers = [
            peers.as_ref().map(PeerNet::socket_buffers),
            clients.as_ref().map(Clients::socket_buffers),
        ];
        // Both ports are told the same.
        let fallback = buffers.into_iter().flatten().find_map(|b| b.fallback());
        self.shared
            .set_net_fallbacks(fallback.into_iter().collect());
        Ok(Links {
            peers,
            queue_bytes_max: limits.peer_queue_bytes_max,
            clients,
            addresses,
            unreleased: Cell::new(0),
            unreleased_max: limits.inbox_bytes_max,
            events: Cell::default(),
            full: RefCell::default(),
        })
    }
}

impl<O: Send + 'static> Links<O> {
    pub(crate) fn peer_address(&self) -> Option<SocketAddr> {
        self.peers.as_ref().map(PeerNet::local_addr)
    }

    pub(crate) fn client_address(&self) -> Option<SocketAddr> {
        self.clients.as_ref().map(Clients::address)
    }

    /// Hands a message to the network. What does not fit is lost, as on any network: of appends the core
    /// hears, and goes on from there once there is room; everything else is said again anyway.
    pub(crate) fn send(&self, message: Message) {
        let Some(peers) = &self.peers else {
            return;
        };
        let (peer, group) = (message.to, message.group);
        let append = match &message.body {
            Body::Append(append) => Some((append.session, append.prev.index.next())),
            _ => None,
        };
        if let (Err(SendError::Full), Some((session, from))) = (peers.try_send(message), append) {
            let mut full = self.full.borrow_mut();
            let first = full.entry((peer, group)).or_insert((session, from));
            // A later session has nothing to do with what an earlier one missed.
            if first.0 < session {
                *first = (session, from);
            }
        }
    }

    /// Takes what has come: messages for the shard, and proposals to their doors.
    pub(crate) fn poll(&self, inputs: &mut Vec<PeerInput>, status: impl Fn() -> Status) {
        if let Some(clients) = &self.clients {
            clients.poll(status);
        }
        let Some(peers) = &self.peers else {
            return;
        };
        // Room is for what did not fit before, so it must not be heard of first.
        let full = std::mem::take(&mut *self.full.borrow_mut());
        let lane_full = |((peer, group), (session, from))| PeerInput::LaneFull {
            peer,
            group,
            session,
            from,
        };
        inputs.extend(full.into_iter().map(lane_full));
        let mut events = self.events.take();
        peers.poll_events(&mut events);
        let mut taken = 0;
        inputs.extend(events.drain(..).map(|event| match event {
            PeerEvent::Message(message) => {
                taken += message.cost_bytes();
                PeerInput::Message(message)
            }
            PeerEvent::Connected {
                peer,
                client_address,
                ..
            } => {
                self.addresses.set(peer, client_address.as_deref());
                PeerInput::Connected(peer)
            }
            PeerEvent::Disconnected { peer } => PeerInput::Disconnected(peer),
            PeerEvent::Room { peer } => PeerInput::LaneRoom(peer),
        }));
        self.unreleased.set(self.unreleased.get() + taken);
        self.events.set(events);
    }

    /// Lets peers send more, unless entries wait for the disk: not reading is the back-pressure.
    pub(crate) fn release(&self, waiting_for_disk_bytes: usize) {
        if let Some(peers) = &self.peers
            && self.unreleased.get() > 0
            && waiting_for_disk_bytes < self.unreleased_max
        {
            peers.release(self.unreleased.take());
        }
    }

    pub(crate) fn memory(&self) -> NetMemory {
        NetMemory {
            peers: self.peers.as_ref().map(PeerNet::memory),
            clients: self.clients.as_ref().map(Clients::memory),
        }
    }

    pub(crate) fn status(&self) -> Vec<LinkStatus> {
        let Some(peers) = &self.peers else {
            return Vec::new();
        };
        let line = |link: logdrive_net::PeerLinkStatus| LinkStatus {
            node: link.peer,
            connected: link.connected,
            rtt_us: link.connected.then_some(link.rtt_us),
            queued_bytes: link.queued_bytes,
            queue_bytes_max: self.queue_bytes_max,
            last_error: link.last_error,
        };
        peers.status().into_iter().map(line).collect()
    }

    pub(crate) async fn shutdown(self) {
        if let Some(clients) = self.clients {
            clients.shutdown().await;
        }
        if let Some(peers) = self.peers {
            peers.shutdown().await;
        }
    }
}
