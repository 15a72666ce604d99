// What the page is asked for and what it tells; tests/grafana/renderer.py reads window.fury.
const query = new URLSearchParams(location.search);

export const asked = {
  dashboard: query.get('dashboard')!,
  prometheus: query.get('prometheus')!,
  theme: query.get('theme') === 'light' ? 'light' : 'dark',
  from: query.get('from')!,
  to: query.get('to')!,
  variables: JSON.parse(query.get('variables') ?? '{}') as Record<string, string | string[]>,
};

export interface Query {
  where: string;
  expr: string;
  series: number;
}

export const told = {
  pending: 0,
  errors: [] as string[],
  queries: [] as Query[],
};
