// Prometheus as Grafana's own data source asks it, over its HTTP API. (Grafana's is under the AGPL and not used.)
import { DataSourceApi, FieldType, toDataFrame, type AnnotationEvent, type DataFrame } from '@grafana/data';
import { VizPanel, sceneGraph, type SceneObject } from '@grafana/scenes';
import { of } from 'rxjs';
import { asked, told } from './page';

const SCRAPE_S = 2; // timeInterval of grafana/provisioning/datasources/fury.yml

let root: SceneObject;
export const setRoot = (scene: SceneObject) => void (root = scene);

export function interpolate(text: string, scopedVars: any = {}, format?: any): string {
  const scene = scopedVars?.__sceneObject?.value;
  return text ? sceneGraph.interpolate(scene?.valueOf?.() ?? scene ?? root, text, scopedVars, format) : text;
}

function panelOf(request: any): string {
  let scene: SceneObject | undefined = request.scopedVars?.__sceneObject?.value?.valueOf();
  while (scene && !(scene instanceof VizPanel)) {
    scene = scene.parent;
  }
  return scene?.state.title ?? '';
}

const escaped = (value: string) => value.replace(/\\/g, '\\\\\\\\').replace(/[$^*{}[\]'+?.()|]/g, '\\\\$&');

function inPromQL(value: string | string[], variable: any): string {
  if (Array.isArray(value)) {
    return value.length === 1 ? escaped(value[0]) : `(${value.map(escaped).join('|')})`;
  }
  return variable?.multi || variable?.includeAll ? escaped(value) : value.replace(/\\/g, '\\\\').replace(/"/g, '\\"');
}

async function get(path: string, parameters: Record<string, string>): Promise<any> {
  told.pending++;
  try {
    const answer = await (await fetch(`${asked.prometheus}${path}?${new URLSearchParams(parameters)}`)).json();
    if (answer.status !== 'success') {
      throw new Error(`${answer.error}: ${parameters.query}`);
    }
    return answer.data;
  } finally {
    told.pending--;
  }
}

const inLabels = (text: string, labels: Record<string, string>) =>
  text.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');

interface Series {
  metric: Record<string, string>;
  values: Array<[number, string]>;
}

async function ask(target: any, request: any): Promise<[Series[], number]> {
  const [from, to] = [request.range.from.valueOf() / 1000, request.range.to.valueOf() / 1000];
  const step = Math.max(parseFloat(target.interval ?? SCRAPE_S), Math.ceil((request.intervalMs ?? 0) / 1000));
  const scoped = {
    ...request.scopedVars,
    __interval: { value: `${step}s` },
    __rate_interval: { value: `${Math.max(step + SCRAPE_S, 4 * SCRAPE_S)}s` },
    __range: { value: `${Math.round(to - from)}s` },
  };
  const query = interpolate(target.expr, scoped, inPromQL);
  const start = Math.floor(from / step) * step;
  const data = target.instant
    ? await get('/api/v1/query', { query, time: `${to}` })
    : await get('/api/v1/query_range', { query, start: `${start}`, end: `${to}`, step: `${step}` });
  const series = data.result.map((each: any) => ({ metric: each.metric, values: each.values ?? [each.value] }));
  const where = request.scopedVars.__annotation ? `annotation ${request.scopedVars.__annotation.text}` : panelOf(request);
  told.queries.push({ where: `${where} ${target.refId}`, expr: query, series: series.length });
  return [series, step];
}

function asTable(series: Series[], target: any, alone: boolean): DataFrame {
  const labels = [...new Set(series.flatMap((each) => Object.keys(each.metric)))].sort();
  const rows = series.flatMap((each) => each.values.map(([at, value]) => ({ labels: each.metric, at, value })));
  return toDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: rows.map((row) => row.at * 1000) },
      ...labels.map((label) => ({ name: label, type: FieldType.string, values: rows.map((row) => row.labels[label] ?? '') })),
      { name: alone ? 'Value' : `Value #${target.refId}`, type: FieldType.number, values: rows.map((row) => Number(row.value)) },
    ],
  });
}

function asGraph({ metric, values }: Series, target: any, request: any, step: number): DataFrame {
  const known = new Map(values.map(([at, value]) => [at, Number(value)]));
  let times = [...known.keys()];
  if (!target.instant) {
    const [from, to] = [request.range.from.valueOf() / 1000, request.range.to.valueOf() / 1000];
    const start = Math.floor(from / step) * step;
    times = Array.from({ length: Math.floor((to - start) / step) + 1 }, (_, n) => start + n * step);
  }
  const name = inLabels(target.legendFormat ?? '', metric);
  const { __name__, ...labels } = metric;
  return toDataFrame({
    refId: target.refId,
    name,
    fields: [
      { name: 'Time', type: FieldType.time, config: { interval: step * 1000 }, values: times.map((at) => at * 1000) },
      { name: 'Value', type: FieldType.number, labels, config: { displayNameFromDS: name }, values: times.map((at) => known.get(at) ?? null) },
    ],
  });
}

function events(annotation: any, { fields: [at, value] }: DataFrame): AnnotationEvent[] {
  const [title, text] = [annotation.titleFormat, annotation.textFormat].map((each) => inLabels(each, value.labels ?? {}));
  const regions: AnnotationEvent[] = [];
  for (const [row, each] of value.values.entries()) {
    const time = annotation.useValueForTime ? Math.floor(each) : at.values[row];
    const open = regions.at(-1);
    if (open && each > 0 && open.timeEnd! + parseFloat(annotation.target.interval) * 1000 >= time) {
      open.timeEnd = time;
    } else if (each > 0) {
      regions.push({ annotation, time, timeEnd: time, isRegion: true, title, text, color: annotation.iconColor });
    }
  }
  return regions;
}

export class Prometheus extends DataSourceApi<any, any> {
  async query(request: any): Promise<{ data: DataFrame[] }> {
    const frames = await Promise.all(
      request.targets.map(async (target: any) => {
        const [series, step] = await ask(target, request);
        return target.format === 'table'
          ? [asTable(series, target, request.targets.length === 1)]
          : series.map((each) => asGraph(each, target, request, step));
      })
    );
    return { data: frames.flat() };
  }

  async metricFindQuery(query: string, options: any) {
    const [, selector, label] = /^label_values\((.+), *(\w+)\)$/.exec(interpolate(query, options?.scopedVars, inPromQL))!;
    const { from, to } = options.range;
    const within = { start: `${from.valueOf() / 1000}`, end: `${to.valueOf() / 1000}` };
    const values: string[] = await get(`/api/v1/label/${label}/values`, { 'match[]': selector, ...within });
    return values.map((text) => ({ text, value: text }));
  }

  // As Grafana does: neighbouring values above 0 become one region; with useValueForTime the value is the time.
  annotations: any = {
    prepareAnnotation: ({ expr, step, ...annotation }: any) => ({ ...annotation, target: { refId: 'Anno', expr, interval: step } }),
    processEvents: (annotation: any, frames: DataFrame[]) => of(frames.flatMap((frame) => events(annotation, frame))),
  };

  async testDatasource() {
    return { status: 'success', message: '' };
  }
}
