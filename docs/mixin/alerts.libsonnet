// Each alert has a section in docs/runbook.md. critical: traffic is unprotected, fails, or somebody may be cheating: wake
// somebody. warning: it will become critical, look at it today.
{
  local config = $._config,

  local alert(name, severity, expr, hold, summary, description) = {
    alert: name,
    expr: expr,
    [if hold != '' then 'for']: hold,
    labels: { severity: severity },
    annotations: {
      summary: summary,
      description: description,
      runbook_url: '%s#%s' % [config.runbookBase, std.asciiLower(name)],
    },
  },

  // The share of its life that something has left.
  local left(name) = |||
    (%(name)s_not_after_timestamp_seconds - time())
      / (%(name)s_not_after_timestamp_seconds - %(name)s_not_before_timestamp_seconds)
  ||| % { name: name },

  prometheusAlerts+:: {
    groups+: [
      {
        name: 'wiretight.encryption',
        rules: [
          alert(
            'WiretightPlaintextInStrict',
            'critical',
            // Only while the node was strict all the time: before the change, plaintext was allowed.
            |||
              sum by (job, instance, direction) (increase(wiretight_intercept_passed_packets_total[15m])) > 0
                and on (job, instance) min_over_time(wiretight_intercept_mode{mode="strict"}[15m]) == 1
            |||,
            '',
            'Plaintext passes on {{ $labels.instance }}, which is in strict mode.',
            '{{ $value | humanize }} plaintext packets ({{ $labels.direction }}) passed in the last 15 minutes.',
          ),
          alert(
            'WiretightNotStrict',
            'critical',
            // A node that was never strict is being introduced: the dashboard shows it. A trial ends by itself, and is
            // not in the configuration.
            |||
              wiretight_intercept_mode{mode="strict"} == 0
                and max_over_time(wiretight_intercept_configured_mode{mode="strict"}[7d]) == 1
                and on (job, instance) wiretight_intercept_trial == 0
            |||,
            '10m',
            '{{ $labels.instance }} is no longer in strict mode.',
            'The node was strict within the last 7 days. Its plaintext is not blocked any more.',
          ),
          alert(
            'WiretightRulesChanged',
            'critical',
            |||
              increase(wiretight_intercept_restored_total[15m]) > 0
                or wiretight_intercept_keeper_alive == 0
            |||,
            '1m',
            'The kernel rules of {{ $labels.instance }} are changed by something else, or not maintained.',
            'Another program removes or changes the table `inet wiretight`, or the process that restores it is gone.',
          ),
          alert(
            'WiretightWatchLosing',
            'warning',
            |||
              wiretight_flow_watching == 0
                or increase(wiretight_flow_lost_packets_total[10m]) + increase(wiretight_flow_resyncs_total[10m]) > 0
            |||,
            // Longer than the range: one loss, for example while the machine was busy, is not enough.
            '15m',
            'The watch of {{ $labels.instance }} misses traffic.',
            'What it misses is counted as unknown, so the coverage of this node is incomplete.',
          ),
          alert(
            'WiretightRefusalsRising',
            'warning',
            |||
              sum by (job, instance, side, service, reason) (rate(wiretight_refused_total[10m])) > %g
            ||| % config.refusalRate,
            '10m',
            '{{ $labels.instance }} refuses connections of service/{{ $labels.service }}: {{ $labels.reason }}.',
            '{{ $value | humanize }} a second, on the side of the {{ $labels.side }}.',
          ),
        ],
      },
      {
        name: 'wiretight.nodes',
        rules: [
          alert(
            'WiretightTargetDown',
            'warning',
            'up{job=~"%s"} == 0' % config.job,
            config.silence,
            '{{ $labels.instance }} cannot be scraped.',
            'The process is down, or Prometheus cannot reach it. Strict rules stay in force, but connections may fail.',
          ),
          alert(
            'WiretightNodeSilent',
            'warning',
            'wiretight_mesh_node_connected == 0',
            config.silence,
            'The authority hears nothing of node {{ $labels.node }}.',
            'The node is down or cannot reach the authority. It gets no new certificates and no revocations.',
          ),
          alert(
            'WiretightReleaseUnproved',
            'warning',
            'wiretight_mesh_node_release_proved == 0',
            config.silence,
            'Node {{ $labels.node }} shows no proved release.',
            'If the authority requires one, the node gets no new certificates when its time of grace is over.',
          ),
          alert(
            'WiretightAuthorityUnreachable',
            'warning',
            'wiretight_authority_connected == 0',
            config.silence,
            '{{ $labels.instance }} has no contact with the authority.',
            'Its connections continue until its certificates expire, or until max_staleness.',
          ),
          alert(
            'WiretightOutOfContact',
            'critical',
            'wiretight_out_of_contact == 1',
            '1m',
            '{{ $labels.instance }} refuses all connections.',
            'It has had no contact with the authority for longer than max_staleness.',
          ),
          alert(
            'WiretightDiskFull',
            'warning',
            'wiretight_state_dir_available_bytes / wiretight_state_dir_size_bytes < %g' % config.diskFree,
            '15m',
            'The disk with the state directory of {{ $labels.instance }} is almost full.',
            '{{ $value | humanizePercentage }} are free. A full disk stops renewals and, on the authority, the log.',
          ),
        ],
      },
      {
        name: 'wiretight.expiry',
        rules: [
          alert(
            'WiretightIdentityExpires',
            'critical',
            left('wiretight_svid') + '  < %g' % config.lifeLeft,
            '2m',
            'The identity {{ $labels.id }} on {{ $labels.instance }} is not renewed.',
            '{{ $value | humanizePercentage }} of its life are left. Connections fail when it expires.',
          ),
          alert(
            'WiretightCertificateExpires',
            'critical',
            left('wiretight_edge_certificate') + '  < %g' % config.lifeLeft,
            '15m',
            'The certificate of {{ $labels.site }} on {{ $labels.instance }} is not renewed.',
            '{{ $value | humanizePercentage }} of its life are left. Browsers reject the site when it expires.',
          ),
          alert(
            'WiretightIssuerExpires',
            'warning',
            // During a rotation the bundle has two roots. The newer counts.
            |||
              (max by (job, instance) (wiretight_root_not_after_timestamp_seconds) - time() < %d * 86400
                and on (job, instance) wiretight_intermediate_not_after_timestamp_seconds)
                or
            ||| % config.rootDays + left('wiretight_intermediate') + '  < %g' % config.lifeLeft,
            '15m',
            'The root or the intermediate of the authority on {{ $labels.instance }} expires soon.',
            'When it has expired, no node can connect to another.',
          ),
        ],
      },
      {
        name: 'wiretight.log',
        rules: [
          alert(
            'WiretightLogStalled',
            'critical',
            |||
              time() - wiretight_log_witnessed_timestamp_seconds > %d
                or wiretight_log_blocked == 1
            ||| % config.checkpointSeconds,
            '5m',
            'The log on {{ $labels.instance }} gets no cosignatures.',
            'No certificate can be issued meanwhile. Identities expire within their lifetime.',
          ),
          alert(
            'WiretightWitnessMissing',
            'warning',
            'wiretight_log_witness_up == 0',
            '15m',
            'The witness {{ $labels.witness }} does not cosign.',
            'If more witnesses fail than the quorum allows, no certificates can be issued.',
          ),
          alert(
            'WiretightLogDamaged',
            'critical',
            'wiretight_log_damaged > 0',
            '1m',
            '{{ $value }} files of the log on {{ $labels.instance }} are missing or damaged.',
            'They are not served. Certificates in them cannot be proved.',
          ),
          alert(
            'WiretightHourNotLogged',
            'warning',
            'time() - wiretight_claims_logged_until_timestamp_seconds > 7200',
            '5m',
            'The traffic of the mesh is not being logged.',
            'The last logged hour ended {{ $value | humanizeDuration }} ago. An hour that is missed stays missing.',
          ),
          alert(
            'WiretightLogMisconduct',
            'critical',
            |||
              increase(wiretight_monitor_alerts_total{kind=~"fork|rollback|contradictory-claim|not-witnessed|damaged|malformed-entry"}[1h]) > 0
                or wiretight_monitor_log_misconduct == 1
            |||,
            '',
            'The monitor {{ $labels.instance }} has found that the log {{ $labels.log }} misbehaves.',
            'The log contradicts itself, or shows what the witnesses have not cosigned.',
          ),
          alert(
            'WiretightUnexpectedCertificate',
            'critical',
            'increase(wiretight_monitor_alerts_total{kind="unexpected-certificate"}[1h]) > 0',
            '',
            'Somebody got a certificate for a watched name.',
            'The log {{ $labels.log }} has a certificate whose key is not expected.',
          ),
          alert(
            'WiretightUnloggedCertificate',
            'critical',
            'increase(wiretight_refused_total{reason="not_logged"}[10m]) > 0',
            '',
            '{{ $labels.instance }} was shown a certificate that is not in the log.',
            'It was refused, on the side of the {{ $labels.side }} of service/{{ $labels.service }}.',
          ),
          alert(
            'WiretightMonitorBlind',
            'critical',
            'wiretight_monitor_log_blind == 1',
            '5m',
            'The monitor {{ $labels.instance }} cannot read the log {{ $labels.log }}.',
            'No certificate is checked meanwhile. A log that hides an entry looks like this.',
          ),
        ],
      },
    ],
  },
}
