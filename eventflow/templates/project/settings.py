"""The program's own settings, from the environment: APP_FEE, APP_ORDERS and so on. Eventflow's are EVENTFLOW_..."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class AppSettings(BaseSettings):
    """What differs between a laptop and production."""

    model_config = SettingsConfigDict(env_prefix="APP_", frozen=True)

    orders: str = "orders"
    receipts: str = "receipts"
    fee: int = 1


settings = AppSettings()
