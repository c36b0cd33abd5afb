// Panels of Grafana dashboards. A target's expression has SEL in each selector, for the chosen jobs and instances.
local selected(expr) = std.strReplace(expr, 'SEL', 'job=~"$job", instance=~"$instance"');
local datasource = { type: 'prometheus', uid: '${datasource}' };

local target(expr, legend, refId, table) = {
  datasource: datasource,
  editorMode: 'code',
  expr: selected(std.stripChars(expr, '\n ')),
  legendFormat: legend,
  refId: refId,
} + (
  if table then { format: 'table', instant: true, range: false } else { instant: false, range: true }
);

local panel(type, title, description, unit, targets, table=false) = {
  type: type,
  title: title,
  description: description,
  datasource: datasource,
  targets: [
    target(targets[i][0], targets[i][1], std.char(std.codepoint('A') + i), table)
    for i in std.range(0, std.length(targets) - 1)
  ],
  fieldConfig: { defaults: { unit: unit }, overrides: [] },
  options: {},
  // In Grafana's grid, which is 24 wide.
  gridPos: { w: 12, h: 8 },
};

{
  // One line for each [expression, legend].
  lines(title, description, unit, targets):: panel('timeseries', title, description, unit, targets) + {
    fieldConfig+: { defaults+: {
      min: 0,
      custom: { drawStyle: 'line', fillOpacity: 10, lineWidth: 1, showPoints: 'never', stacking: { mode: 'none' } },
    } },
    options: {
      legend: { calcs: ['lastNotNull', 'max'], displayMode: 'table', placement: 'bottom', showLegend: true },
      tooltip: { mode: 'multi', sort: 'desc' },
    },
  },

  // Lines that add up.
  stacked(title, description, unit, targets):: self.lines(title, description, unit, targets) + {
    fieldConfig+: { defaults+: { custom+: { fillOpacity: 40, stacking: { mode: 'normal' } } } },
  },

  // One number. `steps`: the colour from each value on, the first from the lowest.
  number(title, description, unit, expr, steps):: panel('stat', title, description, unit, [[expr, title]]) + {
    fieldConfig+: { defaults+: {
      color: { mode: 'thresholds' },
      thresholds: {
        mode: 'absolute',
        steps: [{ color: step[1], value: step[0] } for step in steps],
      },
    } },
    options: { colorMode: 'background', graphMode: 'area', reduceOptions: { calcs: ['lastNotNull'], fields: '', values: false } },
    gridPos: { w: 4, h: 5 },
  },

  // The newest value of each series, with its labels as columns.
  table(title, description, unit, expr, value):: panel('table', title, description, unit, [[expr, '']], true) + {
    options: { showHeader: true, sortBy: [{ desc: true, displayName: value }] },
    transformations: [{
      id: 'organize',
      options: { excludeByName: { Time: true }, renameByName: { Value: value } },
    }],
  },

  wide:: { gridPos+: { w: 24 } },

  // The colour of each value.
  mapped(values):: {
    fieldConfig+: { defaults+: { mappings: [{
      type: 'value',
      options: {
        [value]: { text: values[value][0], color: values[value][1], index: std.parseInt(value) }
        for value in std.objectFields(values)
      },
    }] } },
  },

  // States over time.
  states(title, description, targets):: panel('state-timeline', title, description, 'short', targets) + {
    fieldConfig+: { defaults+: { custom: { fillOpacity: 70, lineWidth: 0 } } },
    options: { mergeValues: true, rowHeight: 0.8, showValue: 'never', legend: { displayMode: 'list', placement: 'bottom', showLegend: true } },
  },

  // Places panels from left to right, in rows as high as their highest panel. (The state is an array, because Jsonnet
  // computes a field of an object at each access.)
  local place(panels) = std.foldl(
    function(at, panel)
      local x = at[0], y = at[1], height = at[2], all = at[3];
      local wraps = x + panel.gridPos.w > 24;
      local left = if wraps then 0 else x, top = if wraps then y + height else y;
      [
        left + panel.gridPos.w,
        top,
        if wraps then panel.gridPos.h else std.max(height, panel.gridPos.h),
        all + [panel + { id: std.length(all) + 1, gridPos+: { x: left, y: top } }],
      ],
    panels,
    [0, 0, 0, []],
  )[3],

  dashboard(config, uid, title, description, panels):: {
    local variable(name, label, metric) = {
      name: name,
      label: label,
      type: 'query',
      datasource: datasource,
      query: { query: 'label_values(%s, %s)' % [metric, name], refId: name },
      refresh: 2,
      sort: 1,
      multi: true,
      includeAll: true,
      allValue: '.+',
      current: { selected: true, text: ['All'], value: ['$__all'] },
      hide: 0,
    },
    uid: uid,
    title: title,
    description: description,
    tags: config.tags,
    editable: false,
    graphTooltip: 1,
    refresh: config.refresh,
    schemaVersion: 39,
    time: { from: config.from, to: 'now' },
    timezone: 'browser',
    links: [{
      title: 'Wiretight',
      type: 'dashboards',
      asDropdown: true,
      includeVars: true,
      keepTime: true,
      tags: config.tags,
    }],
    templating: { list: [
      { name: 'datasource', label: 'Data source', type: 'datasource', query: 'prometheus', hide: 0, refresh: 1, current: {} },
      variable('job', 'Job', 'wiretight_build_info'),
      variable('instance', 'Instance', 'wiretight_build_info{job=~"$job"}'),
    ] },
    panels: place(panels),
  },
}
