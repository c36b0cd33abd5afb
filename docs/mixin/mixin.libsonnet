// Dashboards, alerts and recording rules for Wiretight, as a monitoring mixin (https://monitoring.mixins.dev).
// `scripts/mixin` writes them to generated/.
(import 'config.libsonnet') +
(import 'alerts.libsonnet') +
(import 'rules.libsonnet') +
(import 'dashboards.libsonnet')
