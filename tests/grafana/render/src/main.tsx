// One dashboard's JSON as a scene: variables, time range, annotations, rows and panels, drawn once.
import React from 'react';
import { createRoot } from 'react-dom/client';
import { MemoryRouter } from 'react-router-dom';
import { ThemeContext, getValueFormats, standardTransformers, standardTransformersRegistry } from '@grafana/data';
import { GlobalStyles, PortalContainer } from '@grafana/ui';
import { DataSourceVariable, EmbeddedScene, QueryVariable, SceneControlsSpacer, SceneDataLayerSet, SceneDataTransformer, SceneGridItem, SceneGridLayout, SceneGridRow, SceneQueryRunner, SceneTimePicker, SceneTimeRange, SceneVariableSet, VariableValueSelectors, VizPanel, dataLayers, sceneGraph, sceneUtils } from '@grafana/scenes';
import { setUp } from './grafana';
import { asked, told } from './page';
import { plugins } from './panels';
import { setRoot } from './prometheus';

function variable(each: any) {
  const { name, label, sort, refresh, query, datasource } = each;
  const value = asked.variables[name] ?? each.current.value;
  if (each.type === 'datasource') {
    return new DataSourceVariable({ name, label, pluginId: query, value });
  }
  const [isMulti, includeAll, allValue] = [each.multi, each.includeAll, each.allValue];
  return new QueryVariable({ name, label, query, datasource, refresh, sort, isMulti, includeAll, allValue, value, text: value });
}

function panel(each: any) {
  const { title, description, options, fieldConfig, transformations = [], datasource, targets: queries } = each;
  const unknown = transformations.filter(({ id }: any) => !standardTransformersRegistry.getIfExists(id));
  told.errors.push(...unknown.map(({ id }: any) => `unknown transformation ${id}`)); // the libraries pass over them
  const $data = queries && new SceneDataTransformer({ transformations, $data: new SceneQueryRunner({ queries, datasource }) });
  const { x, y, w, h } = each.gridPos;
  const body = new VizPanel({ key: `panel-${each.id}`, pluginId: each.type, title, description, options, fieldConfig, $data });
  return new SceneGridItem({ key: `item-${each.id}`, x, y, width: w, height: h, isDraggable: false, isResizable: false, body });
}

function scene(dashboard: any) {
  const layers = dashboard.annotations.list.map(
    (query: any) => new dataLayers.AnnotationsDataLayer({ name: query.name, query, isEnabled: query.enable })
  );
  const children = dashboard.panels.map((each: any) =>
    each.type === 'row' ? new SceneGridRow({ key: `row-${each.id}`, title: each.title, y: each.gridPos.y, isCollapsed: false }) : panel(each)
  );
  return new EmbeddedScene({
    $timeRange: new SceneTimeRange({ from: asked.from, to: asked.to, timeZone: 'utc' }),
    $variables: new SceneVariableSet({ variables: dashboard.templating.list.map(variable) }),
    $data: new SceneDataLayerSet({ layers }),
    controls: [new VariableValueSelectors({}), new SceneControlsSpacer(), new SceneTimePicker({})],
    body: new SceneGridLayout({ children }),
  });
}

function status(shown: EmbeddedScene) {
  const panels = sceneGraph.findAllObjects(shown, (each) => each instanceof VizPanel) as VizPanel[];
  return {
    ...told,
    panels: panels.map((each) => {
      const data = sceneGraph.getData(each).state.data;
      const fields = data?.series.flatMap((frame) => frame.fields) ?? [];
      return {
        title: each.state.title,
        state: data?.state ?? 'NotStarted',
        error: (each.state as any)._pluginLoadError ?? data?.errors?.[0]?.message ?? null,
        names: fields.filter((field) => field.name !== 'Time').map((field) => field.state?.displayName ?? field.config.displayNameFromDS ?? field.name),
        marks: data?.annotations?.flatMap((frame) => frame.fields.find((field) => field.name === 'title')?.values ?? []) ?? [],
      };
    }),
    variables: Object.fromEntries(sceneGraph.getVariables(shown).state.variables.map((each) => [each.state.name, (each.state as any).value])),
  };
}

async function main() {
  addEventListener('unhandledrejection', (event) => told.errors.push(`promise: ${event.reason?.stack ?? event.reason}`));
  const theme = await setUp();
  for (const [pluginId, plugin] of Object.entries(plugins)) {
    sceneUtils.registerRuntimePanelPlugin({ pluginId, plugin });
  }
  const dashboard = await (await fetch(asked.dashboard)).json();
  const shown = scene(dashboard);
  setRoot(shown);
  shown.activate();
  createRoot(document.getElementById('root')!).render(
    <MemoryRouter>
      <ThemeContext.Provider value={theme}>
        <GlobalStyles />
        <div style={{ display: 'flex', flexDirection: 'column', padding: '8px 16px' }}>
          <h3>{dashboard.title}</h3>
          <shown.Component model={shown} />
        </div>
        <PortalContainer />
      </ThemeContext.Provider>
    </MemoryRouter>
  );
  (window as any).fury = {
    status: () => status(shown),
    units: getValueFormats().flatMap((group) => (group.submenu ?? []).map((each: any) => each.value)),
    transformations: Object.values(standardTransformers).map((each: any) => each.id),
  };
}

main().catch((error) => {
  (window as any).fury = { status: () => ({ ...told, errors: [...told.errors, `boot: ${error.stack}`], panels: [], variables: {} }) };
});
