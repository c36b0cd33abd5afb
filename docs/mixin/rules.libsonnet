{
  prometheusRules+:: {
    groups+: [
      {
        name: 'wiretight.rules',
        rules: [
          {
            // What crossed a network. Traffic within a machine is not counted.
            record: 'job_instance_level:wiretight_flow_bytes:rate5m',
            expr: 'sum by (job, instance, level) (rate(wiretight_flow_bytes_total{way=~"in|out|forwarded"}[5m]))',
          },
          {
            // The share of it that is encrypted. What is unknown counts as not encrypted.
            record: 'job_instance:wiretight_flow_bytes_encrypted:ratio_rate5m',
            expr: |||
              sum by (job, instance) (job_instance_level:wiretight_flow_bytes:rate5m{level=~"weak|acceptable|strong"})
                / sum by (job, instance) (job_instance_level:wiretight_flow_bytes:rate5m)
            |||,
          },
          {
            record: 'job_instance_side_service:wiretight_session_open_duration_seconds:p99_5m',
            expr: |||
              histogram_quantile(0.99, sum by (job, instance, side, service, le) (
                rate(wiretight_session_open_duration_seconds_bucket[5m])
              ))
            |||,
          },
          {
            record: 'job_instance_site:wiretight_edge_request_duration_seconds:p99_5m',
            expr: |||
              histogram_quantile(0.99, sum by (job, instance, site, le) (
                rate(wiretight_edge_request_duration_seconds_bucket[5m])
              ))
            |||,
          },
        ],
      },
    ],
  },
}
