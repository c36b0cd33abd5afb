// What may differ between sites. Override it: (import 'mixin.libsonnet') + { _config+:: { job: 'mesh-.*' } }
{
  _config+:: {
    // The jobs of Prometheus that scrape nodes, witnesses and monitors, as a regular expression.
    job: 'wiretight.*',
    // The prefix of each alert's `runbook_url`: where docs/runbook.md is served to the people on call.
    runbookBase: 'docs/runbook.md',

    // A node may be out of contact with the authority, and unreachable for Prometheus, for this long.
    silence: '10m',
    // An identity or certificate is late if less than this share of its life is left. (Identities are renewed at half of
    // it, certificates of sites when a third is left.)
    lifeLeft: 0.2,
    // Days before a root expires: enough for a rotation.
    rootDays: 90,
    // The log is cosigned at least every 5 minutes.
    checkpointSeconds: 900,
    // Refused connections a second, of one service for one reason.
    refusalRate: 0.1,
    // The share of the disk of the state directory that must be free.
    diskFree: 0.1,

    // Dashboards.
    tags: ['wiretight'],
    refresh: '30s',
    from: 'now-6h',
  },
}
