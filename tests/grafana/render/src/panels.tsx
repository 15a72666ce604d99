// The panels that Grafana's server would load as plugins: its own components from @grafana/ui, with the defaults of @grafana/schema.
import React from 'react';
import { FieldColorModeId, PanelPlugin, VizOrientation, cacheFieldDisplayNames, getDisplayValueAlignmentFactors, getFieldDisplayValues, type DataFrame, type PanelProps } from '@grafana/data';
import { BarGauge, BigValue, TimeSeries, VizRepeater, useTheme2 } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

type Props = PanelProps<any>;

const NoData = ({ fieldConfig }: Props) => <div className="no-data">{fieldConfig.defaults.noValue ?? 'No data'}</div>;

interface Mark {
  time: number;
  timeEnd: number;
  color: string;
}

function marks(frames: DataFrame[] = []): Mark[] {
  return frames.flatMap((frame) => {
    const column = (name: string) => frame.fields.find((field) => field.name === name)?.values ?? [];
    return [...column('time')].map((time, row) => ({ time, timeEnd: column('timeEnd')[row] ?? time, color: column('color')[row] }));
  });
}

function Graph(props: Props) {
  const theme = useTheme2();
  const plot = React.useRef<any>(null);
  const drawn = React.useRef<Mark[]>([]);
  drawn.current = marks(props.data.annotations);
  React.useEffect(() => plot.current?.redraw(false), [props.data.annotations]);
  if (!props.data.series.length) {
    return <NoData {...props} />;
  }
  const draw = (u: any) => {
    plot.current = u;
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const { time, timeEnd, color } of drawn.current) {
      const [left, right] = [u.valToPos(time, 'x', true), u.valToPos(timeEnd, 'x', true)];
      ctx.strokeStyle = ctx.fillStyle = theme.visualization.getColorByName(color);
      ctx.globalAlpha = 0.15;
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
      ctx.globalAlpha = 1;
      ctx.setLineDash([4, 4]);
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  };
  return (
    <TimeSeries frames={props.data.series} structureRev={props.data.structureRev} timeRange={props.timeRange} timeZone={props.timeZone} width={props.width} height={props.height} legend={props.options.legend} options={props.options}>
      {(builder: any) => {
        builder.addHook('draw', draw);
        return <></>;
      }}
    </TimeSeries>
  );
}

function Values({ render, ...props }: Props & { render: (each: any, theme: any) => React.ReactElement }) {
  const theme = useTheme2();
  const { fieldConfig, replaceVariables, timeZone, data, options } = props;
  const values = () => getFieldDisplayValues({ fieldConfig, replaceVariables, timeZone, theme, data: data.series, reduceOptions: options.reduceOptions, sparkline: false } as any);
  return (
    <VizRepeater
      getValues={values}
      getAlignmentFactors={getDisplayValueAlignmentFactors as any}
      source={data}
      renderCounter={props.renderCounter}
      width={props.width}
      height={props.height}
      autoGrid={props.options.orientation !== VizOrientation.Horizontal}
      orientation={options.orientation ?? VizOrientation.Auto}
      itemSpacing={8}
      renderValue={(each: any) => render(each, theme)}
    />
  );
}

const Stat = (props: Props) => {
  const { colorMode, graphMode, justifyMode, textMode, wideLayout } = props.options;
  const render = ({ value, ...rest }: any, theme: any) => (
    <BigValue {...rest} value={value.display} theme={theme} {...{ colorMode, graphMode, justifyMode, textMode, wideLayout }} />
  );
  return <Values {...props} render={render} />;
};

const Bars = (props: Props) => {
  const { displayMode, showUnfilled, valueMode, namePlacement, text } = props.options;
  const render = ({ value, ...rest }: any, theme: any) => (
    <BarGauge {...rest} value={value.display} field={value.field} display={value.view?.getFieldDisplayProcessor(value.colIndex)} theme={theme} itemSpacing={8} {...{ displayMode, showUnfilled, valueDisplayMode: valueMode, namePlacement, text }} />
  );
  return <Values {...props} render={render} />;
};

const Table = (props: Props) => {
  cacheFieldDisplayNames(props.data.series);
  const frame = props.data.series[props.options.frameIndex ?? 0];
  if (!frame?.length) {
    return <NoData {...props} />;
  }
  return <TableNG data={frame} width={props.width} height={props.height} cellHeight={props.options.cellHeight} timeRange={props.timeRange} fieldConfig={props.fieldConfig} structureRev={props.data.structureRev ?? 1} noHeader={false} showTypeIcons={false} />;
};

const Text = ({ options, replaceVariables }: Props) => <div style={{ padding: 8, whiteSpace: 'pre-wrap' }}>{replaceVariables(options.content)}</div>;

const GRAPH = {
  drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, lineStyle: { fill: 'solid' }, fillOpacity: 0, gradientMode: 'none', spanNulls: false,
  insertNulls: false, showPoints: 'auto', showValues: false, pointSize: 5, stacking: { mode: 'none', group: 'A' }, barAlignment: 0, barWidthFactor: 0.6,
  axisPlacement: 'auto', axisLabel: '', axisCenteredZero: false, axisColorMode: 'text', axisBorderShow: false, scaleDistribution: { type: 'linear' },
  hideFrom: { tooltip: false, viz: false, legend: false }, thresholdsStyle: { mode: 'off' },
}; // prettier-ignore
const TABLE = { align: 'auto', inspect: false, cellOptions: { type: 'auto' }, minWidth: undefined, width: undefined };

function plugin(id: string, component: React.ComponentType<Props>, color: FieldColorModeId, custom: Record<string, unknown>) {
  const made = new PanelPlugin<any, any>(component).setDataSupport({ annotations: true, alertStates: true });
  made.useFieldConfig({
    standardOptions: { color: { defaultValue: { mode: color } } } as any,
    useCustomConfig: (builder) => {
      for (const [name, defaultValue] of Object.entries(custom)) {
        const none = () => null;
        builder.addCustomEditor({ id: name, path: name, name, defaultValue, editor: none, override: none, process: (value: unknown) => value, shouldApply: () => true, settings: {} } as any);
      }
    },
  });
  made.meta = { id, name: id, type: 'panel', info: { version: '', logos: { small: '', large: '' } }, skipDataQuery: id === 'text', module: '', baseUrl: '' } as any;
  return made;
}

export const plugins: Record<string, PanelPlugin<any, any>> = {
  timeseries: plugin('timeseries', Graph, FieldColorModeId.PaletteClassic, GRAPH),
  stat: plugin('stat', Stat, FieldColorModeId.Thresholds, {}),
  bargauge: plugin('bargauge', Bars, FieldColorModeId.Thresholds, {}),
  table: plugin('table', Table, FieldColorModeId.Thresholds, TABLE),
  text: plugin('text', Text, FieldColorModeId.Thresholds, {}),
};
