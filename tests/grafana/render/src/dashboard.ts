// The JSON of a dashboard as Grafana's own schema has it, for the panels that Fury uses: literal values, no key that is not known.
import type { Dashboard as RawDashboard, FieldConfig, Panel as RawPanel, RowPanel } from '@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import type * as BarGauge from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type * as Stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as Table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as TimeSeries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// Enumerations as the strings and numbers that JSON has.
type Literal<T> = T extends string
  ? string extends T ? string : `${T}`
  : T extends number
    ? `${T}` extends `${infer N extends number}` ? (number extends N ? number : N) : number
    : T extends boolean | null | undefined
      ? T
      : T extends Array<infer U>
        ? Literal<U>[]
        : T extends object
          ? { [K in keyof T]: Literal<T[K]> }
          : T;
type Some<T> = T extends Array<infer U> ? Some<U>[] : T extends object ? { [K in keyof T]?: Some<T[K]> } : T;

interface DataSource {
  type: 'prometheus';
  uid: '${datasource}';
}

interface Query {
  refId: string;
  expr: string;
  datasource: DataSource;
  legendFormat?: string;
  format?: 'time_series' | 'table';
  instant?: boolean;
  range?: boolean;
}

interface Annotation {
  name: string;
  datasource: DataSource;
  expr: string;
  step: string;
  titleFormat: string;
  textFormat: string;
  iconColor: string;
  enable: boolean;
  hide: boolean;
  builtIn: 0;
  placement: 'inControlsMenu';
  useValueForTime?: boolean;
}

type Panel<Type extends string, Options, Custom> = Omit<Literal<RawPanel>, 'type' | 'options' | 'fieldConfig' | 'targets' | 'datasource'> & {
  type: Type;
  datasource: DataSource;
  options: Literal<Some<Options>>;
  fieldConfig: {
    defaults: Omit<Literal<FieldConfig>, 'custom'> & { custom?: Literal<Some<Custom>> };
    overrides: Array<{ matcher: { id: 'byName'; options: string }; properties: Array<{ id: string; value: unknown }> }>;
  };
  targets: Query[];
};

export type Dashboard = Omit<Literal<RawDashboard>, 'panels' | 'annotations'> & {
  annotations: { list: Annotation[] };
  panels: Array<
    | Panel<'timeseries', TimeSeries.Options, TimeSeries.FieldConfig>
    | Panel<'stat', Stat.Options, Record<string, never>>
    | Panel<'bargauge', BarGauge.Options, Record<string, never>>
    | Panel<'table', Table.Options, Table.FieldConfig>
    | Literal<RowPanel>
  >;
};
