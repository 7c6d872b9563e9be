//! The maps, declared once. Their names, shapes and meaning are [`bulkhead_common::maps`]'.

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use bulkhead_common::event::{Answer, Event};
use bulkhead_common::maps::{
    Control, EdgeKey, FlowKey, FlowValue, ListenerKey, Maker, Retired, SocketState, Traffic, capacity as cap, totals,
};
use bulkhead_common::outside::{self, Outside, OutsideKey, Share};
use bulkhead_common::places::{ADDRESS_PORT_WORDS, ADDRESS_WORDS, CGROUP_WORDS, RULE_WORDS, array};

use crate::storage::SocketStorage;

/// Kernel: include/uapi/linux/bpf.h.
pub const NO_PREALLOC: usize = 1 << 0;
pub const MMAPABLE: usize = 1 << 10;
/// Accepted sockets get a copy of their listener's value.
const CLONE: usize = 1 << 9;

#[btf_map]
pub static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static SLOTS: Array<[u64; 2], { cap::SLOTS as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static BASELINES: Array<[u64; 2], { cap::IDENTITIES as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static CGROUPS: Array<[u64; CGROUP_WORDS], { array(cap::CGROUPS) as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static ADDRESSES: Array<[u64; ADDRESS_WORDS], { array(cap::ADDRESSES) as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static ADDRESS_PORTS: Array<[u64; ADDRESS_PORT_WORDS], { array(cap::ADDRESS_PORTS) as usize }, MMAPABLE> =
    Array::new();
#[btf_map]
pub static PREFIXES: LpmTrie<[u8; 16], u32, { cap::PREFIXES as usize }, NO_PREALLOC> = LpmTrie::new();
#[btf_map]
pub static RULES: Array<[u64; RULE_WORDS], { array(cap::RULES) as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static EDGES: HashMap<EdgeKey, u64, { cap::EDGES as usize }> = HashMap::new();
#[btf_map]
pub static RETIRED: HashMap<EdgeKey, Retired, { cap::EDGES as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static TRAFFIC: HashMap<EdgeKey, Traffic, { cap::TRAFFIC as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static OUTSIDE_EVEN: HashMap<OutsideKey, Outside, { outside::CAPACITY as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static OUTSIDE_ODD: HashMap<OutsideKey, Outside, { outside::CAPACITY as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static SHARES: Array<Share, { cap::IDENTITIES as usize }, MMAPABLE> = Array::new();
#[btf_map]
pub static TOTALS: PerCpuArray<u64, { totals::LEN as usize }> = PerCpuArray::new();
#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, FlowValue, { cap::FLOWS as usize }> = LruHashMap::new();
#[btf_map]
pub static WORLD_FLOWS: LruHashMap<FlowKey, FlowValue, { cap::FLOWS as usize }> = LruHashMap::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, { cap::EVENT_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub static ANSWERS: RingBuf<Answer, { cap::ANSWER_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub static SOCKETS: Array<SocketState, { cap::SOCKETS as usize }> = Array::new();
#[btf_map]
pub static TAKEN: Array<u64, { cap::SOCKETS as usize }> = Array::new();
#[btf_map]
pub static OTHER_SOCKETS: SocketStorage<SocketState, { NO_PREALLOC | CLONE }> = SocketStorage::new();
#[btf_map]
pub static MAKERS: LruHashMap<ListenerKey, Maker, { cap::MAKERS as usize }> = LruHashMap::new();
#[btf_map]
pub static OLD_SOCKETS: HashMap<u64, u32, { cap::OLD_SOCKETS as usize }, NO_PREALLOC> = HashMap::new();
