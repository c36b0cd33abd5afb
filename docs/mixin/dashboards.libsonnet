// Five dashboards: how much is encrypted, what prevents more, what expires, the log, and what all of it costs.
local p = import 'panels.libsonnet';
local good = 'green', fair = 'yellow', bad = 'red', plain = 'blue';
local alarm = [[null, good], [1, bad]];  // 0 is good

{
  local board(uid, title, description, panels) = {
    [uid + '.json']: p.dashboard($._config, uid, title, description, panels),
  },

  grafanaDashboards+:: board(
    'wiretight-coverage',
    'Wiretight: coverage',
    'How much of the traffic is encrypted, and how well.',
    [
      p.number(
        'Encrypted',
        'The share of bytes that crossed a network encrypted. Unknown counts as not encrypted. A connection is counted when it ends. Needs [watch].',
        'percentunit',
        |||
          sum(rate(wiretight_flow_bytes_total{SEL, way=~"in|out|forwarded", level=~"weak|acceptable|strong"}[$__rate_interval]))
            / sum(rate(wiretight_flow_bytes_total{SEL, way=~"in|out|forwarded"}[$__rate_interval]))
        |||,
        [[null, bad], [0.9, fair], [0.999, good]]
      ),
      p.number(
        'Post-quantum',
        'The share of bytes that crossed a network and stay secret even if somebody records them today.',
        'percentunit',
        |||
          sum(rate(wiretight_flow_bytes_total{SEL, way=~"in|out|forwarded", level="strong"}[$__rate_interval]))
            / sum(rate(wiretight_flow_bytes_total{SEL, way=~"in|out|forwarded"}[$__rate_interval]))
        |||,
        [[null, bad], [0.5, fair], [0.9, good]]
      ),
      p.number(
        'Nodes in strict mode',
        'The share of the nodes with interception that block plaintext.',
        'percentunit',
        'sum(wiretight_intercept_mode{SEL, mode="strict"}) / count(wiretight_intercept_mode{SEL, mode="strict"})',
        [[null, bad], [0.5, fair], [1, good]]
      ),
      p.number(
        'Nodes',
        'Nodes that Prometheus knows.',
        'short',
        'count(wiretight_node_info{SEL})',
        [[null, plain]]
      ),
      p.number(
        'Nodes not ready',
        'Nodes without valid identities, without a trust bundle, or without the rules that they should have.',
        'short',
        'count(wiretight_ready{SEL} == 0) or sum(wiretight_ready{SEL}) * 0',
        alarm
      ),
      p.number(
        'Nodes that watch',
        'Nodes that watch their traffic without a known problem.',
        'short',
        'sum(wiretight_flow_watching{SEL})',
        [[null, plain]]
      ),
      p.stacked(
        'Bytes by level',
        'Bytes that crossed a network, by level of encryption. A connection is counted when it ends, with all its bytes.',
        'Bps',
        [['sum by (level) (rate(wiretight_flow_bytes_total{SEL, way=~"in|out|forwarded"}[$__rate_interval]))', '{{level}}']]
      ),
      p.stacked(
        'New connections by level',
        'Connections across a network that were counted, by level of encryption.',
        'cps',
        [['sum by (level) (rate(wiretight_flow_connections_total{SEL, way=~"in|out|forwarded"}[$__rate_interval]))', '{{level}}']]
      ),
      p.lines(
        'Nodes by mode',
        'Nodes by the mode in force.',
        'short',
        [['sum by (mode) (wiretight_intercept_mode{SEL})', '{{mode}}']]
      ),
      p.lines(
        'Bytes that were not attributed',
        'Bytes on the network interfaces that belong to no known connection, since the start of the watch.',
        'bytes',
        [['max by (instance) (wiretight_flow_missed_bytes{SEL})', '{{instance}}']]
      ),
      p.stacked(
        'Traffic of the relay, by service',
        'Plaintext bytes that dials have carried encrypted, both directions.',
        'Bps',
        [[
          |||
            sum by (service) (
              rate(wiretight_sent_bytes_total{SEL, side="dial"}[$__rate_interval])
                + rate(wiretight_received_bytes_total{SEL, side="dial"}[$__rate_interval])
            )
          |||,
          '{{service}}',
        ]]
      ),
      p.stacked(
        'Requests of the edge, by status',
        'Requests that sites have answered.',
        'reqps',
        [['sum by (site, status) (rate(wiretight_edge_requests_total{SEL}[$__rate_interval]))', '{{site}} {{status}}']]
      ),
    ]
  ) + board(
    'wiretight-strict',
    'Wiretight: what blocks strict mode',
    'Which plaintext strict mode would drop, what the configuration lets through, and what is refused.',
    [
      p.number(
        'Nodes ready for strict',
        'The share of the nodes with interception on which strict mode would block nothing that was seen.',
        'percentunit',
        'avg(wiretight_intercept_strict_ready{SEL})',
        [[null, bad], [0.5, fair], [1, good]]
      ),
      p.number(
        'Flows that strict drops',
        'Plaintext flows of the last day that strict mode would drop, on all nodes.',
        'short',
        'sum(wiretight_intercept_strict_would_stop{SEL})',
        alarm
      ),
      p.number(
        'Connections that fail',
        'Connections that the relay would get in strict mode, and that would fail there.',
        'short',
        'sum(wiretight_intercept_strict_would_fail{SEL})',
        alarm
      ),
      p.number(
        'Exceptions',
        'Settings that let plaintext through.',
        'short',
        'count(wiretight_exception_info{SEL}) or vector(0)',
        [[null, plain]]
      ),
      p.number(
        'Rules restored',
        'How often another program changed the kernel rules, in the chosen time.',
        'short',
        'sum(increase(wiretight_intercept_restored_total{SEL}[$__range]))',
        alarm
      ),
      p.number(
        'Trials',
        'Nodes where a mode is on trial now.',
        'short',
        'sum(wiretight_intercept_trial{SEL})',
        [[null, plain]]
      ),
      p.states(
        'Ready for strict',
        'Green: strict mode would block nothing that was seen on this node.',
        [['max by (instance) (wiretight_intercept_strict_ready{SEL})', '{{instance}}']]
      ) + p.mapped({ '0': ['not ready', bad], '1': ['ready', good] }),
      p.lines(
        'Plaintext with machines of the mesh',
        'Packets that passed and that were dropped.',
        'pps',
        [
          ['sum by (instance) (rate(wiretight_intercept_passed_packets_total{SEL}[$__rate_interval]))', '{{instance}} passed'],
          ['sum by (instance) (rate(wiretight_intercept_dropped_packets_total{SEL}[$__rate_interval]))', '{{instance}} dropped'],
        ]
      ),
      p.table(
        'Plaintext flows',
        'Who sends plaintext to machines of the mesh, in bytes a second. Encrypt these, or make an exception.',
        'Bps',
        'topk(30, sum by (instance, program, direction, protocol, peer, port, verdict) (rate(wiretight_plaintext_bytes_total{SEL}[$__rate_interval])))',
        'bytes/s'
      ) + p.wide,
      p.table(
        'Exceptions in the configuration',
        'What each node lets through unencrypted. `kind` is that of [[exception]].',
        'short',
        'sum by (kind, what, instance) (wiretight_exception_info{SEL})',
        'nodes'
      ),
      p.stacked(
        'Refused connections, by reason',
        'What this node or its peer refused. The operator guide has a table of the reasons.',
        'cps',
        [['sum by (service, reason) (rate(wiretight_refused_total{SEL}[$__rate_interval]))', '{{service}} {{reason}}']]
      ),
    ]
  ) + board(
    'wiretight-expiry',
    'Wiretight: expiry',
    'Identities, certificates of sites, the authority and exceptions, with the time that each has left.',
    [
      p.number(
        'Next identity',
        'Time until the first identity of a node expires. Identities are renewed at half of their life.',
        's',
        'min(wiretight_svid_not_after_timestamp_seconds{SEL}) - time()',
        [[null, bad], [900, fair], [1200, good]]
      ),
      p.number(
        'Next certificate',
        'Time until the first certificate of a site expires.',
        's',
        'min(wiretight_edge_certificate_not_after_timestamp_seconds{SEL}) - time()',
        [[null, bad], [86400, fair], [604800, good]]
      ),
      p.number(
        'Intermediate',
        'Time until the intermediate of the authority expires.',
        's',
        'min(wiretight_intermediate_not_after_timestamp_seconds{SEL}) - time()',
        [[null, bad], [86400, fair], [604800, good]]
      ),
      p.number(
        'Newest root',
        'Time until the newest root of the trust bundle expires.',
        's',
        'max(wiretight_root_not_after_timestamp_seconds{SEL}) - time()',
        [[null, bad], [7776000, fair], [15552000, good]]
      ),
      p.number(
        'Certificates not renewed',
        'Sites whose certificate is not renewed, or whose certificate files are not in use.',
        'short',
        'count(wiretight_edge_certificate_failed{SEL} == 1) or sum(wiretight_ready{SEL}) * 0',
        alarm
      ),
      p.number(
        'Without the authority',
        'Nodes that have no contact with the authority, and so get no new identities.',
        'short',
        'count(wiretight_authority_connected{SEL} == 0) or sum(wiretight_authority_connected{SEL}) * 0',
        alarm
      ),
      p.lines(
        'Life left of identities',
        'The share of its life that each identity has left. It falls to a half, then the identity is renewed.',
        'percentunit',
        [[
          |||
            min by (instance, id) (
              (wiretight_svid_not_after_timestamp_seconds{SEL} - time())
                / (wiretight_svid_not_after_timestamp_seconds{SEL} - wiretight_svid_not_before_timestamp_seconds{SEL})
            )
          |||,
          '{{instance}} {{id}}',
        ]]
      ),
      p.lines(
        'Life left of certificates',
        'The share of its life that the certificate of each site has left, and that of the intermediate.',
        'percentunit',
        [
          [
            |||
              min by (instance, site) (
                (wiretight_edge_certificate_not_after_timestamp_seconds{SEL} - time())
                  / (
                    wiretight_edge_certificate_not_after_timestamp_seconds{SEL}
                      - wiretight_edge_certificate_not_before_timestamp_seconds{SEL}
                  )
              )
            |||,
            '{{instance}} {{site}}',
          ],
          [
            |||
              min by (instance) (
                (wiretight_intermediate_not_after_timestamp_seconds{SEL} - time())
                  / (
                    wiretight_intermediate_not_after_timestamp_seconds{SEL}
                      - wiretight_intermediate_not_before_timestamp_seconds{SEL}
                  )
              )
            |||,
            '{{instance}} intermediate',
          ],
        ]
      ),
      p.table(
        'Exceptions',
        'Time until each [[exception]] ends. It is not removed then, but reported as expired.',
        's',
        'sort(min by (instance, kind, what) (wiretight_exception_until_timestamp_seconds{SEL}) - time())',
        'time left'
      ),
      p.lines(
        'Last contact with the authority',
        'Time since the last message of the authority arrived. A quiet stream is normal; a node is out of contact after max_staleness.',
        's',
        [['time() - max by (instance) (wiretight_authority_last_contact_timestamp_seconds{SEL})', '{{instance}}']]
      ),
    ]
  ) + board(
    'wiretight-log',
    'Wiretight: log and witnesses',
    'Whether certificates can be issued and proved, and who checks it.',
    [
      p.number(
        'Last cosignature',
        'Time since the quorum of witnesses last cosigned. At least every 5 minutes.',
        's',
        'time() - min(wiretight_log_witnessed_timestamp_seconds{SEL})',
        [[null, good], [400, fair], [900, bad]]
      ),
      p.number(
        'Entries',
        'Entries of the log: certificates, revocations, hours of traffic.',
        'short',
        'max(wiretight_log_size{SEL})',
        [[null, plain]]
      ),
      p.number(
        'Issuing',
        '1 while no certificate can be issued, because the log or its witnesses do not work.',
        'short',
        'max(wiretight_log_blocked{SEL})',
        alarm
      ) + p.mapped({ '0': ['works', good], '1': ['blocked', bad] }),
      p.number(
        'Damaged files',
        'Files of the log that are missing, or not what was signed.',
        'short',
        'sum(wiretight_log_damaged{SEL})',
        alarm
      ),
      p.number(
        'Monitor alerts',
        'Alerts that monitors have raised in the chosen time.',
        'short',
        'sum(increase(wiretight_monitor_alerts_total{SEL}[$__range]))',
        alarm
      ),
      p.number(
        'Silent nodes',
        'Nodes of the mesh that are not connected to the authority.',
        'short',
        'count(wiretight_mesh_node_connected{SEL} == 0) or sum(wiretight_mesh_node_connected{SEL}) * 0',
        alarm
      ),
      p.states(
        'Witnesses',
        'Whether the last response of each witness was valid.',
        [['max by (witness) (wiretight_log_witness_up{SEL})', '{{witness}}']]
      ) + p.mapped({ '0': ['problem', bad], '1': ['cosigns', good] }),
      p.lines(
        'Entries that are not cosigned',
        'Entries of the log that wait for the quorum.',
        'short',
        [['max by (instance) (wiretight_log_size{SEL} - wiretight_log_witnessed_size{SEL})', '{{instance}}']]
      ),
      p.lines(
        'New entries',
        'Entries that were added in an hour.',
        'short',
        [['max by (instance) (delta(wiretight_log_size{SEL}[1h]))', '{{instance}}']]
      ),
      p.lines(
        'Age of each witness\'s cosignature',
        'Time since each witness last cosigned.',
        's',
        [['time() - max by (witness) (wiretight_log_witness_cosigned_timestamp_seconds{SEL})', '{{witness}}']]
      ),
      p.lines(
        'Monitors: entries not read',
        'Entries that a log has signed and the monitor has not read yet.',
        'short',
        [['max by (instance, log) (wiretight_monitor_log_size{SEL} - wiretight_monitor_log_read{SEL})', '{{instance}} {{log}}']]
      ),
      p.states(
        'Monitors: logs',
        'Red: the monitor cannot read the log, or has found that it misbehaves.',
        [['clamp_max(max by (instance, log) (wiretight_monitor_log_blind{SEL} + wiretight_monitor_log_misconduct{SEL}), 1)', '{{instance}} {{log}}']]
      ) + p.mapped({ '0': ['good', good], '1': ['problem', bad] }),
      p.lines(
        'Witness processes: requests',
        'Requests to cosign, by HTTP status: 200 cosigned, 409 another size is held, 422 the proof is invalid.',
        'reqps',
        [['sum by (instance, status) (rate(wiretight_witness_requests_total{SEL}[$__rate_interval]))', '{{instance}} {{status}}']]
      ),
      p.lines(
        'Hours of traffic in the log',
        'Time since the end of the newest hour that was logged. A new hour is logged every hour.',
        's',
        [['time() - max by (instance) (wiretight_claims_logged_until_timestamp_seconds{SEL})', '{{instance}}']]
      ),
    ]
  ) + board(
    'wiretight-cost',
    'Wiretight: what a node costs',
    'Processor time, memory, descriptors and disk of each process, and the time that encryption adds.',
    [
      p.lines(
        'Processor',
        'Processor time of each process, in cores. The process that watches is shown apart.',
        'short',
        [
          ['sum by (instance) (rate(process_cpu_seconds_total{SEL}[$__rate_interval]))', '{{instance}}'],
          ['sum by (instance) (rate(wiretight_watch_cpu_seconds_total{SEL}[$__rate_interval]))', '{{instance}} watch'],
        ]
      ),
      p.lines(
        'Memory',
        'Resident memory of each process.',
        'bytes',
        [
          ['sum by (instance) (process_resident_memory_bytes{SEL})', '{{instance}}'],
          ['sum by (instance) (wiretight_watch_resident_memory_bytes{SEL})', '{{instance}} watch'],
        ]
      ),
      p.lines(
        'Time added before the first byte',
        'Dials: from the connection of a program until its session is open. Services: from the request of a peer until the backend is connected.',
        's',
        [
          [
            'histogram_quantile(0.5, sum by (side, le) (rate(wiretight_session_open_duration_seconds_bucket{SEL}[$__rate_interval])))',
            '{{side}} median',
          ],
          [
            'histogram_quantile(0.99, sum by (side, le) (rate(wiretight_session_open_duration_seconds_bucket{SEL}[$__rate_interval])))',
            '{{side}} 99 %',
          ],
        ]
      ),
      p.lines(
        'Handshakes and connects of the relay',
        '99 of 100 TLS handshakes, and of 100 TCP connections to peers (dial) or backends (service), took less.',
        's',
        [
          [
            'histogram_quantile(0.99, sum by (side, le) (rate(wiretight_handshake_duration_seconds_bucket{SEL}[$__rate_interval])))',
            '{{side}} handshake',
          ],
          [
            'histogram_quantile(0.99, sum by (side, le) (rate(wiretight_connect_duration_seconds_bucket{SEL}[$__rate_interval])))',
            '{{side}} connect',
          ],
        ]
      ),
      p.lines(
        'Requests of the edge',
        'From the head of a request to the end of its response.',
        's',
        [
          [
            'histogram_quantile(0.5, sum by (site, le) (rate(wiretight_edge_request_duration_seconds_bucket{SEL}[$__rate_interval])))',
            '{{site}} median',
          ],
          [
            'histogram_quantile(0.99, sum by (site, le) (rate(wiretight_edge_request_duration_seconds_bucket{SEL}[$__rate_interval])))',
            '{{site}} 99 %',
          ],
        ]
      ),
      p.lines(
        'Handshakes of the edge',
        '99 of 100 TLS handshakes with clients took less, by protocol and key exchange.',
        's',
        [[
          'histogram_quantile(0.99, sum by (protocol, group, le) (rate(wiretight_edge_handshake_duration_seconds_bucket{SEL}[$__rate_interval])))',
          '{{protocol}} {{group}}',
        ]]
      ),
      p.lines(
        'Sessions and connections',
        'Open sessions of the relay, idle connections that it keeps ready, and connections of clients to the edge.',
        'short',
        [
          ['sum by (instance) (wiretight_sessions_live{SEL})', '{{instance}} sessions'],
          ['sum by (instance) (wiretight_idle_connections{SEL})', '{{instance}} idle'],
          ['sum by (instance) (wiretight_edge_connections{SEL})', '{{instance}} edge'],
        ]
      ),
      p.lines(
        'Sessions per handshake',
        'Sessions that were started for each TLS handshake, over the chosen time. More is cheaper.',
        'short',
        [[
          |||
            sum by (instance, side) (increase(wiretight_sessions_total{SEL}[$__range]))
              / sum by (instance, side) (increase(wiretight_handshakes_total{SEL}[$__range]))
          |||,
          '{{instance}} {{side}}',
        ]]
      ),
      p.lines(
        'File descriptors',
        'The share of the limit that is used.',
        'percentunit',
        [['max by (instance) (process_open_fds{SEL} / process_max_fds{SEL})', '{{instance}}']]
      ),
      p.lines(
        'Free disk',
        'The share of the disk of the state directory that is free.',
        'percentunit',
        [['min by (instance) (wiretight_state_dir_available_bytes{SEL} / wiretight_state_dir_size_bytes{SEL})', '{{instance}}']]
      ),
      p.lines(
        'Threads',
        'Threads of each process.',
        'short',
        [['sum by (instance) (process_threads{SEL})', '{{instance}}']]
      ),
      p.lines(
        'Uptime',
        'Time since each process was started. An upgrade starts another process.',
        's',
        [['time() - max by (instance) (process_start_time_seconds{SEL})', '{{instance}}']]
      ),
    ]
  ),
}
