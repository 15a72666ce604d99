// What a Grafana server's front end would have set up before it shows a dashboard.
import { EventBusSrv, LoadingState, createTheme, dataLinksOverrideProcessor, displayNameOverrideProcessor, identityOverrideProcessor, numberOverrideProcessor, standardEditorsRegistry, standardFieldConfigEditorRegistry, standardTransformers, standardTransformersRegistry, thresholdsOverrideProcessor, unitOverrideProcessor, valueMappingsOverrideProcessor, type GrafanaTheme2 } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { config, setAppEvents, setBackendSrv, setDataSourceSrv, setEchoSrv, setLocationSrv, setPluginImportUtils, setRunRequest, setTemplateSrv } from '@grafana/runtime';
import { catchError, from, map, of } from 'rxjs';
import { asked, told } from './page';
import { Prometheus, interpolate } from './prometheus';

const SOURCE: any = {
  uid: 'fury-prometheus',
  name: 'Fury Prometheus',
  type: 'prometheus',
  isDefault: true,
  meta: { id: 'prometheus', name: 'Prometheus', info: { logos: { small: '', large: '' } }, metrics: true, annotations: true },
  jsonData: {},
  readOnly: true,
  access: 'proxy',
};

export async function setUp(): Promise<GrafanaTheme2> {
  const theme = createTheme({ colors: { mode: asked.theme as 'light' | 'dark' } });
  Object.assign(config, { theme2: theme, theme: theme.v1, featureToggles: {} });
  await initPluginTranslations('fury', []);
  setFieldOptions();
  const transformers = new Map(Object.values(standardTransformers as any).map((each: any) => [each.id, each]));
  standardTransformersRegistry.setInit(() =>
    [...transformers.values()].map((each) => ({ id: each.id, name: each.name, transformation: async () => each, editor: () => null }) as any)
  );
  const source = new Prometheus(SOURCE);
  const known = (ref: any, scopedVars?: any) => {
    const uid = interpolate(typeof ref === 'string' ? ref : (ref?.uid ?? SOURCE.uid), scopedVars);
    if (uid !== SOURCE.uid) {
      told.errors.push(`unknown data source ${JSON.stringify(ref)}`);
    }
    return SOURCE;
  };
  setDataSourceSrv({ get: async (ref: any, vars: any) => known(ref, vars) && source, getList: () => [SOURCE], getInstanceSettings: known, reload() {} } as any);
  setRunRequest(((_: any, request: any) =>
    from(source.query(request)).pipe(
      map(({ data }) => ({ state: LoadingState.Done, series: data, annotations: [], timeRange: request.range, request })),
      catchError((error) => {
        told.errors.push(`query: ${error.message}`);
        return of({ state: LoadingState.Error, series: [], error, timeRange: request.range, request });
      })
    )) as any);
  setTemplateSrv({ replace: interpolate, getVariables: () => [], containsTemplate: (text = '') => text.includes('$'), updateTimeRange() {} } as any);
  setBackendSrv({ get: async () => ({}), fetch: () => of({ data: {} }) } as any);
  setLocationSrv({ update() {} });
  setAppEvents(new EventBusSrv());
  setEchoSrv({ addEvent() {}, addBackend() {}, flush() {} } as any);
  setPluginImportUtils({ importPanelPlugin: async (id: string) => Promise.reject(new Error(`no panel ${id}`)), getPanelPluginFromCache: () => undefined } as any);
  return theme;
}

function setFieldOptions() {
  const processors = {
    unit: unitOverrideProcessor,
    min: numberOverrideProcessor,
    max: numberOverrideProcessor,
    decimals: numberOverrideProcessor,
    displayName: displayNameOverrideProcessor,
    mappings: valueMappingsOverrideProcessor,
    thresholds: thresholdsOverrideProcessor,
    links: dataLinksOverrideProcessor,
  };
  const plain = ['noValue', 'color', 'filterable', 'fieldMinMax', 'description', 'interval'].map((id) => [id, identityOverrideProcessor]);
  const none = () => null;
  standardFieldConfigEditorRegistry.setInit(() =>
    [...Object.entries(processors), ...plain].map(([id, process]) => ({ id, path: id, name: id, editor: none, override: none, process, shouldApply: () => true, settings: {} }) as any)
  );
  const editors = ['number', 'text', 'boolean', 'select', 'radio', 'unit', 'color', 'stats-picker', 'thresholds', 'mappings', 'slider', 'multi-select', 'strings', 'timezone', 'fieldColor', 'links', 'field-name', 'actions', 'dashboard-uid'];
  standardEditorsRegistry.setInit(() => editors.map((id) => ({ id, name: id, editor: none }) as any));
}
