// Tests of the alerts for `promtool test rules`: each alert fires when it should, goes on while the cause lasts, and does
// not fire before, after, or for a moment's cause.
local config = (import 'config.libsonnet')._config;
local node = 'job="wiretight", instance="n1"';
local labels = { job: 'wiretight', instance: 'n1' };

// Each case: minutes, and the expected labels and description of an alert, or null. Values are those of each minute.
local test(alert, severity, series, summary, cases) = {
  name: alert,
  interval: '1m',
  input_series: [{ series: '%s{%s}' % [s[0], s[1]], values: s[2] } for s in series],
  alert_rule_test: [
    {
      eval_time: '%dm' % case[0],
      alertname: alert,
      exp_alerts: if case[1] == null then [] else [{
        exp_labels: { severity: severity } + case[1],
        exp_annotations: {
          summary: summary,
          description: case[2],
          runbook_url: '%s#%s' % [config.runbookBase, std.asciiLower(alert)],
        },
      }],
    }
    for case in cases
  ],
};

// A gauge that shows a problem for a minute at 5, and from 20 to 60.
local flag = '0x4 1 0x13 1x40 0x40';
local inverse = '1x4 0 1x13 0x40 1x40';
// The alert for it: not for the moment, not before `from`, all the time until it is over.
local during(from, labels, description) =
  [[minute, null, ''] for minute in [4, 5, 6, 18, from - 1]] +
  [[minute, labels, description] for minute in [from, from + 10, 45, 58]] +
  [[minute, null, ''] for minute in [61, 80]];

{
  rule_files: ['rules.yaml', 'alerts.yaml'],
  evaluation_interval: '1m',
  tests: [
    test(
      'WiretightPlaintextInStrict',
      'critical',
      [
        // Permissive until 20: plaintext is allowed. Strict then, and at 60 one packet a minute passes for 10 minutes.
        ['wiretight_intercept_mode', node + ', mode="strict"', '0x19 1x100'],
        ['wiretight_intercept_passed_packets_total', node + ', direction="out"', '0+5x19 95x40 96+1x8 105x50'],
      ],
      'Plaintext passes on n1, which is in strict mode.',
      [[minute, null, ''] for minute in [10, 19, 20, 21, 30, 35, 50, 60]] +
      [
        [65, labels { direction: 'out' }, '5 plaintext packets (out) passed in the last 15 minutes.'],
        [70, labels { direction: 'out' }, '10 plaintext packets (out) passed in the last 15 minutes.'],
        [75, labels { direction: 'out' }, '10 plaintext packets (out) passed in the last 15 minutes.'],
        [90, null, ''],
      ]
    ),
    test(
      'WiretightNotStrict',
      'critical',
      [
        ['wiretight_intercept_configured_mode', node + ', mode="strict"', '1x60 0x60'],
        ['wiretight_intercept_mode', node + ', mode="strict"', '1x20 0 1x20 0x80'],
        ['wiretight_intercept_trial', node, '0x200'],
        // Never strict; and on trial.
        ['wiretight_intercept_configured_mode', 'job="wiretight", instance="n2", mode="strict"', '0x200'],
        ['wiretight_intercept_mode', 'job="wiretight", instance="n2", mode="strict"', '0x20 1x20 0x100'],
        ['wiretight_intercept_trial', 'job="wiretight", instance="n2"', '0x20 1x20 0x100'],
        ['wiretight_intercept_configured_mode', 'job="wiretight", instance="n3", mode="strict"', '1x200'],
        ['wiretight_intercept_mode', 'job="wiretight", instance="n3", mode="strict"', '1x20 0x100'],
        ['wiretight_intercept_trial', 'job="wiretight", instance="n3"', '0x20 1x180'],
      ],
      'n1 is no longer in strict mode.',
      [[minute, null, ''] for minute in [10, 21, 35, 50]] +
      [
        [minute, labels { mode: 'strict' }, 'The node was strict within the last 7 days. Its plaintext is not blocked any more.']
        for minute in [53, 70, 110]
      ]
    ),
    test(
      'WiretightRulesChanged',
      'critical',
      [['wiretight_intercept_restored_total', node, '0x20 1x60'], ['wiretight_intercept_keeper_alive', node, '1x100']],
      'The kernel rules of n1 are changed by something else, or not maintained.',
      [[minute, null, ''] for minute in [10, 20]] +
      [
        [minute, labels, 'Another program removes or changes the table `inet wiretight`, or the process that restores it is gone.']
        for minute in [23, 30, 34]
      ] +
      [[minute, null, ''] for minute in [40, 60]]
    ),
    test(
      'WiretightRulesChanged',
      'critical',
      [['wiretight_intercept_keeper_alive', node, inverse]],
      'The kernel rules of n1 are changed by something else, or not maintained.',
      during(21, labels, 'Another program removes or changes the table `inet wiretight`, or the process that restores it is gone.')
    ),
    test(
      'WiretightWatchLosing',
      'warning',
      [
        ['wiretight_flow_watching', node, inverse],
        ['wiretight_flow_lost_packets_total', node, '0x200'],
        ['wiretight_flow_resyncs_total', node, '0x200'],
      ],
      'The watch of n1 misses traffic.',
      during(35, labels, 'What it misses is counted as unknown, so the coverage of this node is incomplete.')
    ),
    test(
      'WiretightWatchLosing',
      'warning',
      [
        ['wiretight_flow_watching', node, '1x200'],
        // Once at 20, and all the time from 60 to 100.
        ['wiretight_flow_lost_packets_total', node, '0x19 9x39 10+1x40 50x60'],
        ['wiretight_flow_resyncs_total', node, '0x200'],
      ],
      'The watch of n1 misses traffic.',
      [[minute, null, ''] for minute in [19, 22, 29, 32, 50, 70]] +
      [
        [minute, labels, 'What it misses is counted as unknown, so the coverage of this node is incomplete.']
        for minute in [77, 90, 105]
      ] +
      [[120, null, '']]
    ),
    test(
      'WiretightRefusalsRising',
      'warning',
      [
        // One in five minutes is normal. From 60 on, one a second.
        ['wiretight_refused_total', node + ', side="service", service="db", reason="not_allowed"', '0 0 0 0 1 1 1 1 1 2 2x49 2+60x60 3602x60'],
      ],
      'n1 refuses connections of service/db: not_allowed.',
      [[minute, null, ''] for minute in [5, 20, 59, 65]] +
      [
        [minute, labels { side: 'service', service: 'db', reason: 'not_allowed' }, '1 a second, on the side of the service.']
        for minute in [80, 100, 115]
      ] +
      [[140, null, '']]
    ),
    test(
      'WiretightTargetDown',
      'warning',
      [['up', node, inverse], ['up', 'job="other", instance="n9"', '0x200']],
      'n1 cannot be scraped.',
      during(30, labels, 'The process is down, or Prometheus cannot reach it. Strict rules stay in force, but connections may fail.')
    ),
    test(
      'WiretightNodeSilent',
      'warning',
      [['wiretight_mesh_node_connected', node + ', node="db1"', inverse], ['wiretight_mesh_node_connected', node + ', node="web1"', '1x200']],
      'The authority hears nothing of node db1.',
      during(30, labels { node: 'db1' }, 'The node is down or cannot reach the authority. It gets no new certificates and no revocations.')
    ),
    test(
      'WiretightReleaseUnproved',
      'warning',
      [['wiretight_mesh_node_release_proved', node + ', node="db1"', inverse], ['wiretight_mesh_node_release_proved', node + ', node="web1"', '1x200']],
      'Node db1 shows no proved release.',
      during(30, labels { node: 'db1' }, 'If the authority requires one, the node gets no new certificates when its time of grace is over.')
    ),
    test(
      'WiretightAuthorityUnreachable',
      'warning',
      [['wiretight_authority_connected', node, inverse]],
      'n1 has no contact with the authority.',
      during(30, labels, 'Its connections continue until its certificates expire, or until max_staleness.')
    ),
    test(
      'WiretightOutOfContact',
      'critical',
      [['wiretight_out_of_contact', node, flag]],
      'n1 refuses all connections.',
      during(21, labels, 'It has had no contact with the authority for longer than max_staleness.')
    ),
    test(
      'WiretightDiskFull',
      'warning',
      [
        ['wiretight_state_dir_available_bytes', node, '50x4 5 50x13 5x40 50x40'],
        ['wiretight_state_dir_size_bytes', node, '100x200'],
      ],
      'The disk with the state directory of n1 is almost full.',
      during(35, labels, '5% are free. A full disk stops renewals and, on the authority, the log.')
    ),
    test(
      'WiretightIdentityExpires',
      'critical',
      // An hour of life. It is renewed at 30 minutes, and not again.
      [
        ['wiretight_svid_not_before_timestamp_seconds', node + ', id="spiffe://example.org/service/db"', '0x30 1800x100'],
        ['wiretight_svid_not_after_timestamp_seconds', node + ', id="spiffe://example.org/service/db"', '3600x30 5400x100'],
      ],
      'The identity spiffe://example.org/service/db on n1 is not renewed.',
      [[minute, null, ''] for minute in [10, 29, 31, 60, 78, 80]] +
      [
        [81, labels { id: 'spiffe://example.org/service/db' }, '15% of its life are left. Connections fail when it expires.'],
        [87, labels { id: 'spiffe://example.org/service/db' }, '5% of its life are left. Connections fail when it expires.'],
        [96, labels { id: 'spiffe://example.org/service/db' }, '-10% of its life are left. Connections fail when it expires.'],
      ]
    ),
    test(
      'WiretightCertificateExpires',
      'critical',
      // 100 minutes of life; renewed after 70, and not again.
      [
        ['wiretight_edge_certificate_not_before_timestamp_seconds', node + ', site="www.example.org"', '0x69 4200x200'],
        ['wiretight_edge_certificate_not_after_timestamp_seconds', node + ', site="www.example.org"', '6000x69 10200x200'],
      ],
      'The certificate of www.example.org on n1 is not renewed.',
      [[minute, null, ''] for minute in [10, 69, 72, 149, 164]] +
      [
        [166, labels { site: 'www.example.org' }, '4% of its life are left. Browsers reject the site when it expires.'],
        [180, labels { site: 'www.example.org' }, '-10% of its life are left. Browsers reject the site when it expires.'],
      ]
    ),
    test(
      'WiretightIssuerExpires',
      'warning',
      // The old root expires in 10 days. The new one, in a year, is there from 60 minutes on.
      [
        ['wiretight_root_not_after_timestamp_seconds', node + ', root="old"', '864000x200'],
        ['wiretight_root_not_after_timestamp_seconds', node + ', root="new"', '_x60 31536000x140'],
        ['wiretight_intermediate_not_before_timestamp_seconds', node, '0x200'],
        ['wiretight_intermediate_not_after_timestamp_seconds', node, '2592000x200'],
        // Only the authority's node reports it.
        ['wiretight_root_not_after_timestamp_seconds', 'job="wiretight", instance="n2", root="old"', '864000x200'],
      ],
      'The root or the intermediate of the authority on n1 expires soon.',
      [
        [10, null, ''],
        [20, labels, 'When it has expired, no node can connect to another.'],
        [50, labels, 'When it has expired, no node can connect to another.'],
        [70, null, ''],
      ]
    ),
    test(
      'WiretightIssuerExpires',
      'warning',
      [
        ['wiretight_intermediate_not_before_timestamp_seconds', node, '0x200'],
        ['wiretight_intermediate_not_after_timestamp_seconds', node, '6000x60 600000x100'],
      ],
      'The root or the intermediate of the authority on n1 expires soon.',
      [[10, null, ''], [79, null, '']]
    ),
    test(
      'WiretightIssuerExpires',
      'warning',
      [
        ['wiretight_intermediate_not_before_timestamp_seconds', node, '0x200'],
        ['wiretight_intermediate_not_after_timestamp_seconds', node, '6000x200'],
      ],
      'The root or the intermediate of the authority on n1 expires soon.',
      [[79, null, ''], [90, null, '']] +
      [[minute, labels, 'When it has expired, no node can connect to another.'] for minute in [97, 120]]
    ),
    test(
      'WiretightLogStalled',
      'critical',
      [
        // Every 5 minutes until 60.
        ['wiretight_log_witnessed_timestamp_seconds', node, '0x4 300x4 600x4 900x4 1200x4 1500x4 1800x4 2100x4 2400x4 2700x4 3000x4 3300x4 3600x60 7200x20'],
        ['wiretight_log_blocked', node, '0x200'],
      ],
      'The log on n1 gets no cosignatures.',
      [[minute, null, ''] for minute in [0, 3, 30, 60, 75, 78]] +
      [[minute, labels, 'No certificate can be issued meanwhile. Identities expire within their lifetime.'] for minute in [82, 100, 119]] +
      [[123, null, '']]
    ),
    test(
      'WiretightLogStalled',
      'critical',
      [['wiretight_log_blocked', node, flag]],
      'The log on n1 gets no cosignatures.',
      during(25, labels, 'No certificate can be issued meanwhile. Identities expire within their lifetime.')
    ),
    test(
      'WiretightWitnessMissing',
      'warning',
      [['wiretight_log_witness_up', node + ', witness="w1"', inverse], ['wiretight_log_witness_up', node + ', witness="w2"', '1x200']],
      'The witness w1 does not cosign.',
      during(35, labels { witness: 'w1' }, 'If more witnesses fail than the quorum allows, no certificates can be issued.')
    ),
    test(
      'WiretightLogDamaged',
      'critical',
      [['wiretight_log_damaged', node, '0x18 2x41 0x40']],
      '2 files of the log on n1 are missing or damaged.',
      [[18, null, '']] +
      [[minute, labels, 'They are not served. Certificates in them cannot be proved.'] for minute in [21, 40, 59]] +
      [[65, null, '']]
    ),
    test(
      'WiretightHourNotLogged',
      'warning',
      // An hour is logged up to 5 minutes late, until the fourth.
      [['wiretight_claims_logged_until_timestamp_seconds', node, '0x64 3600x59 7200x59 10800x300']],
      'The traffic of the mesh is not being logged.',
      [[minute, null, ''] for minute in [10, 64, 66, 123, 183, 299, 303]] +
      [
        [310, labels, 'The last logged hour ended 2h 10m 0s ago. An hour that is missed stays missing.'],
        [400, labels, 'The last logged hour ended 3h 40m 0s ago. An hour that is missed stays missing.'],
      ]
    ),
    test(
      'WiretightLogMisconduct',
      'critical',
      [
        ['wiretight_monitor_alerts_total', 'job="wiretight-monitor", instance="m1", log="example.org/mesh", kind="fork"', '0x20 1x200'],
        ['wiretight_monitor_alerts_total', 'job="wiretight-monitor", instance="m1", log="example.org/mesh", kind="blind"', '0 0 5x200'],
        ['wiretight_monitor_log_misconduct', 'job="wiretight-monitor", instance="m1", log="example.org/mesh"', '0x200'],
      ],
      'The monitor m1 has found that the log example.org/mesh misbehaves.',
      [[minute, null, ''] for minute in [5, 20]] +
      [
        [
          minute,
          { job: 'wiretight-monitor', instance: 'm1', log: 'example.org/mesh', kind: 'fork' },
          'The log contradicts itself, or shows what the witnesses have not cosigned.',
        ]
        for minute in [21, 50, 79]
      ] +
      [[90, null, '']]
    ),
    test(
      'WiretightLogMisconduct',
      'critical',
      [['wiretight_monitor_log_misconduct', 'job="wiretight-monitor", instance="m1", log="example.org/mesh"', '0x20 1x60 0x9']],
      'The monitor m1 has found that the log example.org/mesh misbehaves.',
      [
        [20, null, ''],
        [
          21,
          { job: 'wiretight-monitor', instance: 'm1', log: 'example.org/mesh' },
          'The log contradicts itself, or shows what the witnesses have not cosigned.',
        ],
        [85, null, ''],
      ]
    ),
    test(
      'WiretightUnexpectedCertificate',
      'critical',
      [['wiretight_monitor_alerts_total', node + ', log="example.org/mesh", kind="unexpected-certificate"', '0x20 1x200']],
      'Somebody got a certificate for a watched name.',
      [[20, null, '']] +
      [
        [minute, labels { log: 'example.org/mesh', kind: 'unexpected-certificate' }, 'The log example.org/mesh has a certificate whose key is not expected.']
        for minute in [21, 50, 79]
      ] +
      [[90, null, '']]
    ),
    test(
      'WiretightUnloggedCertificate',
      'critical',
      [
        ['wiretight_refused_total', node + ', side="service", service="db", reason="not_logged"', '0x20 1x200'],
        ['wiretight_refused_total', node + ', side="service", service="db", reason="unreachable"', '0+1x200'],
      ],
      'n1 was shown a certificate that is not in the log.',
      [[20, null, '']] +
      [
        [minute, labels { side: 'service', service: 'db', reason: 'not_logged' }, 'It was refused, on the side of the service of service/db.']
        for minute in [21, 25, 30]
      ] +
      [[35, null, '']]
    ),
    test(
      'WiretightMonitorBlind',
      'critical',
      [['wiretight_monitor_log_blind', node + ', log="example.org/mesh"', flag]],
      'The monitor n1 cannot read the log example.org/mesh.',
      during(25, labels { log: 'example.org/mesh' }, 'No certificate is checked meanwhile. A log that hides an entry looks like this.')
    ),
  ],
}
